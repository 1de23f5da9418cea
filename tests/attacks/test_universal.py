"""Universal perturbations: the linear model's known answer, the algorithm, the random control."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L2, Linf, Misclassify, Target, evaluate, load, replace
from advjax.attacks.deepfool import DeepFool
from advjax.attacks.universal import Universal, train_universal, train_universal_deepfool


def two_classes(weights, offset, x):
    score = x.reshape(x.shape[0], -1) @ weights + offset
    return jnp.stack([score, -score], axis=1)


@pytest.fixture(scope="module")
def one_sided():
    """Two classes by one hyperplane, on one side of which all images lie: (model, weights, x)."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=12).astype(np.float32)
    x = rng.uniform(0.4, 0.6, size=(30, 3, 4, 1)).astype(np.float32)
    offset = 0.02 - (x.reshape(30, -1) @ weights).min()
    model = jax.tree_util.Partial(two_classes, jnp.asarray(weights), jnp.float32(offset))
    return model, weights, jnp.asarray(x)


@pytest.mark.parametrize("train", [train_universal, train_universal_deepfool])
@pytest.mark.parametrize("make", [Linf, L2])
def test_a_linear_model_is_fooled_as_far_as_can_be(train, make, one_sided, key):
    model, weights, x = one_sided
    dual = np.abs(weights).sum() if make is Linf else np.linalg.norm(weights)
    score = np.asarray(model(x)[:, 0])
    ball = make(np.sort(score)[18] / dual)
    reachable = score < ball.eps * dual
    counts = {"steps": 40} if train is train_universal else {"passes": 3, "rate": 1.0}
    universal = train(key, model, x, ball=ball, **counts)
    fooled = universal.fooled(key, model, x, batch_size=7)
    clear = np.abs(score - ball.eps * dual) > 0.03 * ball.eps * dual
    np.testing.assert_array_equal(fooled[clear], reachable[clear])
    np.testing.assert_allclose(ball.size(universal.delta[None]), ball.eps, rtol=1e-3)


def test_one_image_of_the_published_algorithm(one_sided, key):
    """The perturbation is DeepFool's, projected; a batch adds the mean of its changes."""
    model, _, x = one_sided
    attack, ball = DeepFool(ball=L2(), steps=10), L2(0.03)
    change = attack(key, model, x[:3], jnp.zeros(3, jnp.int32)) - x[:3]
    one = train_universal_deepfool(key, model, x[:1], ball=ball, attack=attack, passes=1)
    np.testing.assert_allclose(one.delta, ball.project(change[:1])[0], atol=1e-6)
    wide = replace(ball, eps=np.float32(9))
    several = train_universal_deepfool(
        key, model, x[:3], ball=wide, attack=attack, passes=1, batch_size=3
    )
    np.testing.assert_allclose(several.delta, change.mean(axis=0), atol=1e-6)


def test_it_stops_at_the_rate_and_returns_the_best_pass(one_sided, key):
    model, weights, x = one_sided
    told, score = [], np.asarray(model(x)[:, 0])
    universal = train_universal_deepfool(
        key,
        model,
        x,
        ball=L2(np.sort(score)[18] / np.linalg.norm(weights)),
        rate=0.3,
        passes=9,
        progress=lambda *what: told.append(what),
    )
    assert told[-1][2] >= 0.3 and all(rate < 0.3 for _, _, rate in told[:-1]) and len(told) < 9
    assert universal.fooled(key, model, x).mean() == pytest.approx(told[-1][2])


def ridge(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def digits():
    """A linear model fitted in closed form, training images and test images with labels."""
    train, test = load("digits", "train"), load("digits", "test")
    x, xt = (np.asarray(d.x, np.float32).reshape(-1, 8, 8, 1) / 255 for d in (train, test))
    flat = x.reshape(-1, 64).astype(np.float64)
    hot = np.eye(10)[np.asarray(train.y)]
    weights = np.linalg.solve(flat.T @ flat + np.eye(64), flat.T @ hot)
    model = jax.tree_util.Partial(ridge, jnp.asarray(10 * weights, jnp.float32))
    return model, jnp.asarray(x), jnp.asarray(xt), jnp.asarray(np.asarray(test.y), jnp.int32)


def test_digits_it_never_saw_are_fooled_far_beyond_noise(digits, key):
    model, x, xt, yt = digits
    ball, told = Linf(0.15), []
    universal = train_universal(
        key, model, x[:500], ball=ball, steps=100, progress=lambda *what: told.append(what)
    )
    assert told[-1][:2] == (100, 100) and told[-1][2] > told[0][2]
    rate = universal.fooled(key, model, xt).mean()
    signs = [jnp.sign(jax.random.normal(jax.random.key(i), (8, 8, 1))) for i in range(5)]
    noise = [replace(universal, delta=0.15 * s).fooled(key, model, xt).mean() for s in signs]
    assert rate > 3 * np.mean(noise) and rate > 2 * np.max(noise)
    published = train_universal_deepfool(key, model, x[:100], ball=ball, batch_size=10, passes=3)
    assert published.fooled(key, model, xt).mean() > 2 * np.mean(noise)
    robust = evaluate(model, (xt, yt), {"universal": universal}, key=key).robust
    assert robust["universal"].value < 1 - rate + 0.1


def test_a_target_is_reached(digits, key):
    model, x, xt, _ = digits
    fields = {"ball": Linf(0.3), "steps": 60}
    aimed = train_universal(key, model, x[:300], 3, goal=Target(), **fields)
    free = train_universal(key, model, x[:300], **fields)
    share = lambda universal: float(jnp.mean(jnp.argmax(model(universal.apply(xt)), 1) == 3))
    assert share(aimed) > 0.5 and share(aimed) > share(free)
    assert isinstance(aimed.goal, Misclassify) and aimed.with_goal(Target()).goal.targeted


def test_the_mask_holds_and_the_scale_reaches_the_perturbation(one_sided, key):
    model, _, x = one_sided
    mask = np.zeros((3, 4, 1), np.float32)
    mask[0] = 1
    universal = train_universal(key, model, x, ball=Linf(0.1, mask=mask), steps=20)
    np.testing.assert_array_equal(universal.apply(x)[:, 1:], x[:, 1:])
    assert (universal.delta[0] != 0).all()
    double = universal.scaled(2)
    np.testing.assert_allclose(double.delta, 2 * universal.delta)
    np.testing.assert_allclose(double.ball.size(double.apply(x) - x), 0.2, rtol=1e-4)


def test_what_is_not_taken_is_refused(one_sided, key):
    model, _, x = one_sided
    with pytest.raises(ValueError, match="expected a finite eps"):
        train_universal(key, model, x, ball=Linf())
    with pytest.raises(ValueError, match="expected a scalar"):
        Universal(delta=0.1, ball=Linf([0.1, 0.2]))
    with pytest.raises(ValueError, match="passes=0"):
        train_universal_deepfool(key, model, x, passes=0)
    with pytest.raises(ValueError, match="no y"):
        train_universal(key, model, x, goal=Target())
    with pytest.raises(ValueError, match="delta's"):
        Universal(delta=np.zeros((4, 3, 1)), ball=Linf(0.1)).fooled(key, model, x)
