"""NES and SPSA: estimates against the true gradient, attacks against the best perturbation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L2, Linf, Target, Targeted, cross_entropy, example_keys, margin, replace
from advjax.attacks.core.oracle import Scores
from advjax.attacks.nes import NES, Probing
from advjax.attacks.spsa import SPSA

DRAWS = {"nes": jax.random.normal, "spsa": jax.random.rademacher}


def quadratic(weights, curve, x):
    flat = x.reshape(x.shape[0], -1)
    return flat @ weights + (flat**2) @ curve


@pytest.fixture(scope="module")
def curved():
    rng = np.random.default_rng(5)
    weights, curve = jnp.asarray(rng.normal(size=(2, 24, 3)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.2, 0.8, size=(4, 4, 3, 2)), jnp.float32)
    model = jax.tree_util.Partial(quadratic, weights, curve)
    return model, x, jnp.argmax(model(x), axis=1)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("targeted", [False, True])
def test_estimates_tend_to_the_gradient(name, targeted, curved, key):
    """With n pairs in d dimensions the cosine to the gradient is about sqrt(n / (n + d))."""
    model, x, y = curved
    attack = NES(ball=Linf(0.1))
    attack = attack.with_goal(Target()) if targeted else attack
    true = jax.grad(lambda x: jnp.sum(cross_entropy(model(x), y)))(x) * (-1 if targeted else 1)
    keys = example_keys(key, 4)
    for samples in (50, 5000):
        probing = Probing(draw=DRAWS[name], samples=samples)
        found, level = probing.estimate(attack, Scores(model), x, y, keys, 1e-3)
        dot = lambda a, b: np.asarray(jnp.sum(a * b, axis=(1, 2, 3)))
        cosine = dot(found, true) / np.sqrt(dot(found, found) * dot(true, true))
        expected = np.sqrt(samples / 2 / (samples / 2 + 24))
        assert abs(cosine.mean() - expected) < (0.1 if samples == 50 else 0.005)
    np.testing.assert_allclose(dot(found, true) / dot(true, true), 1, atol=0.1)
    clean = cross_entropy(model(x), y) * (-1 if targeted else 1)
    np.testing.assert_allclose(level, clean, atol=1e-3)


def test_chunks_change_nothing_but_rounding(curved, key):
    model, x, y = curved
    attack = SPSA(ball=Linf(0.1))
    keys = example_keys(key, 4)
    whole, parts = (
        Probing(draw=jax.random.normal, samples=24, chunk=chunk).estimate(
            attack, Scores(model), x, y, keys, 0.01
        )
        for chunk in (None, 6)
    )
    np.testing.assert_allclose(whole[0], parts[0], atol=1e-4)
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-5)


ATTACKS = {
    "nes_linf": NES(ball=Linf(0.1), queries=1500, samples=20),
    "nes_l2": NES(ball=L2(0.1), queries=1500, samples=20),
    "spsa_linf": SPSA(ball=Linf(0.1), queries=1500, samples=20),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_finds_what_the_ball_holds_and_only_that(name, key):
    """On a linear model the ball's worst case is the margin less eps times the dual norm."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(24, 2)).astype(np.float32)
    x = jnp.asarray(rng.uniform(0.3, 0.7, size=(8, 4, 3, 2)), jnp.float32)
    model = jax.tree_util.Partial(quadratic, jnp.asarray(weights), jnp.zeros((24, 2)))
    y = jnp.argmax(model(x), axis=1)
    gap = -np.asarray(margin(model(x), y))
    slope = weights[:, 0] - weights[:, 1]
    dual = np.abs(slope).sum() if "linf" in name else np.linalg.norm(slope)
    share = np.array([0.0, 0.8, 0.95, 1.05, 1.25, 1.5, 2, 3], np.float32)  # eps / what is needed
    attack = replace(ATTACKS[name], ball=replace(ATTACKS[name].ball, eps=share * gap / dual))
    if "nes" in name:
        attack = replace(attack, step_size=attack.ball.eps / 5, min_step_size=1e-4)
    record = attack.run(key, model, x, y)
    np.testing.assert_array_equal(record.success[share < 1], False)
    np.testing.assert_array_equal(record.success[share > 1.2], True)
    assert (record.distance <= attack.ball.eps * (1 + 1e-5)).all()
    assert (record.forwards <= 1501).all() and (record.forwards % 21 == 2).all()
    done = np.asarray(record.success)
    np.testing.assert_array_equal(record.first_success[done], record.forwards[done] - 2)


def test_the_step_is_halved_where_the_loss_fell(tiny, key):
    """Where every step undoes the last one, the step shrinks to its least."""
    attack = NES(ball=Linf(0.3), step_size=0.3, samples=4, queries=401, momentum=0.0)
    x, y = jnp.full((2, 1, 1, 1), 0.5), jnp.zeros(2, jnp.int32)
    step = jax.jit(lambda i, state: attack.step(i, state, well, x, y))
    state = jax.jit(lambda key: attack.init(key, well, x, y, 60))(key)
    for i in range(60):
        state = step(np.int32(i), state)
    assert (state.step_size < 0.01).all()
    assert (jnp.abs(state.x_adv - 0.6) < 0.05).all()  # the loss is largest there


def well(x):
    distance = (x.reshape(-1, 1) - 0.6) ** 2
    return jnp.concatenate([5 + distance, jnp.zeros_like(distance)], axis=1)


def test_targets_are_reached(tiny, key):
    model, _, x, y = tiny
    target = (y + 1) % 5
    record = Targeted(SPSA(ball=Linf(0.8), queries=4000, step_size=0.03)).run(key, model, x, target)
    assert record.success.all()
    np.testing.assert_array_equal(jnp.argmax(model(record.x_adv), axis=1), target)
