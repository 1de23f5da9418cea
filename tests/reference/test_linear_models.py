"""On linear models the best perturbation is known: attacks must find it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import FGSM, L1, L2, PGD, Linf, Targeted, cross_entropy, replace


def two_class(weights, bias, x):
    """Logits (0, w.x + b): label 1 where the score is positive."""
    score = x.reshape(x.shape[0], -1) @ weights + bias
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


@pytest.fixture(scope="module")
def logistic():
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.normal(size=20), jnp.float32)
    x = jnp.asarray(rng.uniform(0.3, 0.7, size=(9, 5, 4)), jnp.float32)
    model = jax.tree_util.Partial(two_class, weights, jnp.float32(-0.1))
    return model, weights, x, jnp.argmax(model(x), axis=1)


def test_fgsm_on_logistic_regression_is_the_exact_worst_case(logistic, key):
    """Goodfellow et al. 2015, section 5: the loss becomes softplus(eps |w|_1 - y (w.x + b))."""
    model, weights, x, y = logistic
    eps = 0.1
    record = FGSM(ball=Linf(eps)).run(key, model, x, y)
    signed = model(x)[:, 1] * (2 * y - 1)
    expected = jax.nn.softplus(eps * jnp.abs(weights).sum() - signed)
    np.testing.assert_allclose(record.loss, expected, rtol=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(100):
        noise = jnp.asarray(rng.uniform(-eps, eps, size=(100, *x.shape)), jnp.float32)
        tried = jax.vmap(lambda d: cross_entropy(model(x + d), y))(noise)
        assert (tried <= record.loss + 1e-6).all()


def best_score(ball, weights, x, sign):
    """The largest ``sign * w.delta`` over the ball and the box, by the greedy exact solution."""
    w = sign[:, None] * weights[None]
    flat = x.reshape(x.shape[0], -1)
    room = np.where(w > 0, 1 - flat, flat)
    if isinstance(ball, Linf):
        return (np.abs(w) * np.minimum(room, ball.eps)).sum(1)
    out = []
    for row, space in zip(np.abs(w), room, strict=True):
        if isinstance(ball, L1):  # fractional knapsack
            left, total = float(ball.eps), 0.0
            for j in np.argsort(-row):
                step = min(left, space[j])
                total, left = total + row[j] * step, left - step
            out.append(total)
        else:  # min(room, t |w|) with t such that the length is eps
            lo, hi = 0.0, 1e6
            for _ in range(200):
                t = (lo + hi) / 2
                fits = np.linalg.norm(np.minimum(space, t * row)) < ball.eps
                lo, hi = (t, hi) if fits else (lo, t)
            out.append((row * np.minimum(space, lo * row)).sum())
    return np.array(out)


@pytest.mark.parametrize(
    "ball", [Linf(0.08), Linf(0.5), L2(0.4), L2(1.5), L1(0.8), L1(3.0)], ids=repr
)
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_reaches_the_optimum_inside_ball_and_box(logistic, key, ball, targeted):
    model, weights, x, y = logistic
    if isinstance(ball, L1):
        ball = replace(ball, fraction=0.05)
    attack = PGD(ball=ball, steps=400, step_size=ball.eps / (100 if isinstance(ball, L1) else 20))
    goal = 1 - y if targeted else y
    attack = Targeted(attack=attack) if targeted else attack
    record = attack.run(key, model, x, goal)
    sign = np.asarray(1 - 2 * y)
    best = best_score(ball, np.asarray(weights), np.asarray(x), sign)
    reached = sign * np.asarray(model(record.x_adv)[:, 1] - model(x)[:, 1])
    assert (reached <= best + 1e-4).all()
    assert (reached >= 0.99 * best).all(), reached / best
    possible = sign * np.asarray(model(x)[:, 1]) + best > 0
    clear = np.abs(sign * np.asarray(model(x)[:, 1]) + best) > 0.02 * best
    np.testing.assert_array_equal(np.asarray(record.success)[clear], possible[clear])
