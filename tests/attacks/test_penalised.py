"""The penalised attack: what each penalty does to the shape of a change (on real digits)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L0, L1, L2, Linf, Targeted, Undetected, cross_entropy, margin, replace
from advjax.attacks.penalised import Penalised
from advjax.data import load


def two_layers(weights, x):
    hidden = jax.nn.relu(x.reshape(x.shape[0], -1) @ weights["in"])
    return hidden @ weights["out"]


@pytest.fixture(scope="module")
def digits():
    """A small network that knows the digits, and 48 of them that it never saw."""
    train, test = load("digits", "train"), load("digits", "test")
    scale = np.float32(np.asarray(train.x).max())
    images, labels = jnp.asarray(train.x / scale, jnp.float32), jnp.asarray(train.y)
    rng = np.random.default_rng(0)
    start = {
        "in": jnp.asarray(rng.normal(size=(64, 48)) / 8, jnp.float32),
        "out": jnp.asarray(rng.normal(size=(48, 10)) / 7, jnp.float32),
    }

    def descend(_, carry):
        weights, velocity = carry
        loss = lambda weights: jnp.mean(cross_entropy(two_layers(weights, images), labels))
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, jax.grad(loss)(weights))
        return jax.tree.map(lambda w, v: w - 0.1 * v, weights, velocity), velocity

    nothing = jax.tree.map(jnp.zeros_like, start)
    weights, _ = jax.jit(lambda c: jax.lax.fori_loop(0, 300, descend, c))((start, nothing))
    model = jax.tree_util.Partial(two_layers, weights)
    x, y = jnp.asarray(test.x[:48] / scale, jnp.float32), jnp.asarray(test.y[:48], jnp.int32)
    assert (jnp.argmax(model(x), axis=1) == y).mean() > 0.9
    return model, x, y


@pytest.fixture(scope="module")
def changes(digits):
    """Records of the three penalties, and the changes of the images that each one flipped."""
    model, x, y = digits
    out = {}
    for penalty in ("l1", "l2", "linf"):
        record = Penalised(ball=L2(), penalty=penalty, steps=500).run(
            jax.random.key(0), model, x, y
        )
        moved = np.asarray(record.success) & (np.asarray(record.distance) > 0)
        out[penalty] = record, np.asarray(record.x_adv - x)[moved].reshape(moved.sum(), -1)
    return out


def test_nearly_every_image_flips_by_a_small_change(changes):
    for penalty, (record, change) in changes.items():
        assert record.success.mean() >= 0.95, penalty
        # 48x48 faces take less than 0.05; with 64 pixels each must do more.
        assert np.abs(change).mean() < {"l1": 0.05, "l2": 0.06, "linf": 0.08}[penalty], penalty


def test_every_penalty_is_the_best_in_its_own_norm_and_shows_in_the_shape(changes):
    size = {name: np.abs(change) for name, (_, change) in changes.items()}
    still = {name: (a < 0.002).mean() for name, a in size.items()}
    flat = {name: (a.max(axis=1) / a.mean(axis=1)).mean() for name, a in size.items()}
    assert still["l1"] > 2 * still["l2"]
    assert flat["linf"] < 0.75 * flat["l2"] < 0.75 * flat["l1"]
    mean = {name: a.mean() for name, a in size.items()}
    largest = {name: a.max(axis=1).mean() for name, a in size.items()}
    length = {name: np.sqrt((a**2).sum(axis=1)).mean() for name, a in size.items()}
    assert min(mean, key=mean.get) == "l1"
    assert min(length, key=length.get) == "l2"
    assert min(largest, key=largest.get) == "linf"


def test_the_change_that_is_kept_is_the_smallest_seen(digits, changes, key):
    """More steps never end at a larger penalty; the first flip is far from the best."""
    model, x, y = digits
    long = changes["l2"][0]
    short = Penalised(penalty="l2", steps=250).run(key, model, x, y)
    both = np.asarray(short.success)
    assert (long.distance <= short.distance + 1e-6)[both].all()
    assert (long.forwards == 502).all() and (long.backwards == 500).all()
    record = Penalised(penalty="l2", weight=1e-6, steps=250).run(key, model, x, y)
    assert long.distance.mean() < 0.9 * record.distance.mean()  # Adam alone moves all alike


def test_confidence_radius_and_mask(digits, key):
    model, x, y = digits
    base = Penalised(penalty="l2", steps=400, step_size=2e-3)
    sure = replace(base, confidence=1.0).run(key, model, x, y)
    found = np.asarray(sure.distance) > 0
    assert found.mean() > 0.9
    assert (np.asarray(margin(model(sure.x_adv), y))[found] >= 0.999).all()
    free = base.run(key, model, x, y)
    eps = np.float32(np.median(free.distance))
    near = replace(base, ball=L2(eps)).run(key, model, x, y)
    assert (near.distance <= eps + 1e-6).all()
    np.testing.assert_array_equal(near.success, free.success & (free.distance <= eps))
    mask = np.zeros((8, 8, 1), np.float32)
    mask[2:6, 2:6] = 1
    local = replace(base, ball=Linf(mask=mask)).run(key, model, x, y)
    np.testing.assert_array_equal(np.where(mask == 0, local.x_adv - x, 0), 0)
    assert local.success.mean() > 0.8


def test_a_network_with_a_small_gradient_flips_too(digits, key):
    """The default weight falls until the class flips; one that is given stays."""
    model, x, y = digits
    flat = jax.tree_util.Partial(two_layers, {**model.args[0], "out": model.args[0]["out"] / 20})
    attack = Penalised(penalty="l2", steps=500, step_size=2e-3)
    assert attack.run(key, flat, x, y).success.mean() >= 0.95
    assert replace(attack, weight=100).run(key, flat, x, y).success.mean() < 0.5


def test_it_goes_to_the_target_or_to_the_runner_up(digits, key):
    model, x, y = digits
    target = (y + 1) % 10
    attack = Penalised(penalty="l2", weight=30, steps=600, step_size=2e-3)
    record = Targeted(attack).run(key, model, x, target)
    reached = jnp.argmax(model(record.x_adv), axis=1) == target
    np.testing.assert_array_equal(record.success, reached)
    assert reached.mean() > 0.95
    logits = np.array(model(x))
    logits[np.arange(48), y] = -np.inf
    record = attack.run(key, model, x, y)
    right = np.asarray(record.distance) > 0
    became = np.asarray(jnp.argmax(model(record.x_adv), axis=1))
    assert (became == logits.argmax(axis=1))[right].mean() > 0.9


def test_the_penalty_is_the_balls_norm_unless_told():
    assert [Penalised(ball=ball).penalty for ball in (Linf(), L2(), L1())] == ["linf", "l2", "l1"]
    assert Penalised(ball=L0(), penalty="l1").penalty == "l1"
    for fields, message in (
        ({"ball": L0()}, "penalty=None and L0; expected a penalty 'l1', 'l2' or 'linf'"),
        ({"penalty": "L2"}, "given penalty='L2'"),
        ({"weight": 0}, "given weight=0"),
        ({"step_size": -1}, "given step_size=-1"),
        ({"steps": -1}, "given steps=-1"),
        ({"ball": "l2"}, "given ball='l2'; expected a ball"),
        (
            {"goal": Undetected()},
            r"given goal=Undetected\(\); expected Misclassify\(\) or Target\(\)",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            Penalised(**fields)
