"""SimBA: its directions, its query count and its steps against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import linear

from advjax import L2, Linf, Targeted, example_keys, margin, replace
from advjax.attacks.core import driver
from advjax.attacks.simba import SimBA


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_directions_are_an_orthonormal_basis(basis):
    x = jnp.zeros((24, 4, 3, 2))
    attack = SimBA(ball=L2(1.0), basis=basis)
    rows = np.asarray(attack._direction(jnp.arange(24), x)).reshape(24, -1)
    np.testing.assert_allclose(rows @ rows.T, np.eye(24), atol=1e-6)
    if basis == "dct":  # frequency (1, 0) of channel 1, from the definition
        expected = np.zeros((4, 3, 2))
        wave = np.sqrt(2 / 4) * np.cos(np.pi * (2 * np.arange(4) + 1) / 8)
        expected[:, :, 1] = wave[:, None] / np.sqrt(3)
        np.testing.assert_allclose(rows[1 * 3 * 2 + 0 * 2 + 1], expected.ravel(), atol=1e-6)


def test_every_direction_comes_once_in_an_order_of_the_examples_own(tiny, key):
    _, _, x, _ = tiny
    for attack, count in (
        (SimBA(ball=L2(1.0)), 24),
        (SimBA(ball=L2(1.0), basis="dct", freq_dims=2), 8),
        (SimBA(ball=L2(1.0), queries=5), 5),
    ):
        order = np.asarray(attack._order(example_keys(key, 8), x)[0])
        assert order.shape == (8, count)
        assert all(len(set(row)) == count for row in order)
        assert order.max() < 24 and len({tuple(row) for row in order}) == 8
    mask = np.zeros(x.shape[1:], np.float32)
    mask[1:3] = 1
    order, available = SimBA(ball=L2(1.0, mask=mask))._order(example_keys(key, 8), x)
    assert (available == 12).all()
    assert mask.ravel()[np.asarray(order)[:, :12]].all()


def test_steps_and_queries_are_the_papers(tiny, key):
    """Against the algorithm in NumPy: minus first, one query where it helps, two where not."""
    model, weights, x, y = tiny
    attack = SimBA(ball=L2(0.8), queries=30)
    orders = np.asarray(attack._order(example_keys(key, 8), x)[0])
    record = attack.run(key, model, x, y)

    def loss(image, label):
        logits = image.ravel().astype(np.float64) @ np.asarray(weights, np.float64)
        others = np.delete(logits, label)
        return np.log(np.sum(np.exp(others))) - logits[label], logits.argmax() != label

    for row in range(8):
        clean, label = np.asarray(x[row], np.float64), int(y[row])
        image, used, (best, done) = clean, 1, loss(clean, label)
        for which in orders[row]:
            for sign in (-1, 1):
                if done or used == 30:
                    break
                tried = image.copy().ravel()
                tried[which] = np.clip(tried[which] + sign * 0.2, 0, 1)
                delta = tried.reshape(image.shape) - clean
                length = np.linalg.norm(delta)
                tried = clean + delta * min(1, 0.8 / length)
                used += 1
                value, wrong = loss(tried, label)
                if wrong or value > best:
                    image, best, done = tried, value, wrong
                    break
        np.testing.assert_allclose(record.x_adv[row], image, atol=1e-5)
        assert int(record.forwards[row]) == used + 1


def test_a_sign_that_the_box_undoes_costs_nothing(tiny, key):
    """Black images: minus is undone everywhere, so that every direction is one query."""
    model, _, x, y = tiny
    x = jnp.zeros_like(x)
    attack = SimBA(ball=L2(1e3), queries=100, step_size=1e-2)
    y = jnp.zeros_like(y)
    state = driver._init(attack, key, model, x, y, attack.steps)
    state = replace(state, tally=replace(state.tally, first_success=-jnp.ones_like(y)))
    for i in range(24):
        state = driver._step(attack, np.int32(i), state, model, x, y)
    turns = np.asarray(state.turn)
    np.testing.assert_array_equal(turns, np.asarray(state.tally.forwards) - 1)


def test_finds_what_the_ball_holds_and_only_that(key):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(24, 2)).astype(np.float32)
    x = jnp.asarray(rng.uniform(0.3, 0.7, size=(8, 4, 3, 2)), jnp.float32)
    model = jax.tree_util.Partial(linear, jnp.asarray(weights))
    y = jnp.argmax(model(x), axis=1)
    gap = -np.asarray(margin(model(x), y))
    slope = np.abs(weights[:, 0] - weights[:, 1])
    share = np.array([0.0, 0.8, 0.99, 1.01, 1.2, 1.5, 2, 3], np.float32)
    # With a step of eps each pixel ends where it helps most: exact in L-inf after one round.
    eps = share * gap / slope.sum()
    attack = SimBA(ball=Linf(eps), step_size=np.maximum(eps, 1e-3), queries=60)
    record = attack.run(key, model, x, y)
    np.testing.assert_array_equal(record.success, share > 1)
    assert (record.forwards <= 61).all() and (record.distance <= eps + 1e-6).all()
    eps = share * gap / np.linalg.norm(slope)
    for basis in ("pixel", "dct"):
        attack = SimBA(ball=L2(eps), step_size=np.maximum(eps / 8, 1e-3), basis=basis, queries=400)
        record = attack.run(key, model, x, y)
        np.testing.assert_array_equal(record.success[share < 1], False)
        np.testing.assert_array_equal(record.success[share >= 1.5], True)
        assert (record.distance <= eps * (1 + 1e-5) + 1e-7).all()


def test_targets_are_reached(tiny, key):
    model, _, x, y = tiny
    target = (y + 1) % 5
    record = Targeted(SimBA(ball=Linf(0.8), queries=500)).run(key, model, x, target)
    np.testing.assert_array_equal(jnp.argmax(model(record.x_adv), axis=1), target)
    assert record.success.all()
