"""The flow attack: its warp and roughness against NumPy, what it keeps, what it stands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L2, Target, load
from advjax.attacks.flow import Flow, roughness, warp

RNG = np.random.default_rng(0)


init = jax.jit(Flow.init)
step = jax.jit(Flow.step)


@jax.jit
def looked_at(flow, model, x, y):
    return jnp.argmax(model(warp(x, flow)), 1) != y, roughness(flow)


def ridge(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def digits():
    """A linear model fitted in closed form, and 32 test images that it gets right."""
    train, test = load("digits", "train"), load("digits", "test")
    flat = lambda data: np.asarray(data.x, np.float64).reshape(len(data.x), -1) / 255
    x = flat(train)
    hot = np.eye(10)[np.asarray(train.y)]
    weights = np.linalg.solve(x.T @ x + np.eye(64), x.T @ hot)
    model = jax.tree_util.Partial(ridge, jnp.asarray(10 * weights, jnp.float32))
    images = jnp.asarray(np.asarray(test.x, np.float32) / 255).reshape(-1, 8, 8, 1)
    labels = jnp.asarray(np.asarray(test.y), jnp.int32)
    right = np.flatnonzero(jnp.argmax(model(images), 1) == labels)[:32]
    return model, images[right], labels[right]


def test_a_constant_flow_shifts_and_repeats_the_edge():
    x = RNG.uniform(size=(2, 4, 5, 2)).astype(np.float32)
    still = jnp.zeros((2, 4, 5, 2))
    np.testing.assert_array_equal(jax.jit(warp)(x, still), x)
    got = jax.jit(warp)(x, still + jnp.array([[[[1.0, -2.0]]]]))
    rows, cols = np.clip(np.arange(4) + 1, 0, 3), np.clip(np.arange(5) - 2, 0, 4)
    np.testing.assert_allclose(got, x[:, rows][:, :, cols], atol=1e-6)


def test_roughness_is_the_sum_over_four_neighbours():
    flow = RNG.normal(size=(2, 3, 4, 2)).astype(np.float32)
    expected = np.zeros(2)
    for r in range(3):
        for c in range(4):
            for a, b in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if 0 <= a < 3 and 0 <= b < 4:
                    expected += np.linalg.norm(flow[:, r, c] - flow[:, a, b], axis=-1)
    np.testing.assert_allclose(jax.jit(roughness)(flow), expected, rtol=1e-5)
    slope = jax.jit(jax.grad(lambda flow: roughness(flow).sum()))(jnp.ones((1, 3, 4, 2)))
    assert (slope == 0).all()  # and not NaN


def test_it_fools_by_smooth_flows_and_keeps_the_smoothest(digits, key):
    model, x, y = digits
    attack = Flow(steps=60, tau=0.02)
    record = attack.run(key, model, x, y)
    assert record.success.mean() > 0.9
    np.testing.assert_array_equal(record.success, jnp.argmax(model(record.x_adv), 1) != y)
    assert record.x_adv.min() >= 0 and record.x_adv.max() <= 1
    assert (record.zero_gradient == 0).all()
    assert (record.forwards == 62).all() and (record.backwards == 60).all()
    state, nearest = init(attack, key, model, x, y, jnp.int32(100)), np.full(32, np.inf)
    for i in range(30):
        fooled, rough = looked_at(state.flow, model, x, y)
        nearest = np.where(fooled, np.minimum(nearest, rough), nearest)
        state = step(attack, i, state, model, x, y)
        np.testing.assert_allclose(state.closest.distance, nearest, rtol=1e-4)
    assert np.isfinite(nearest).mean() > 0.8
    smoother = Flow(steps=60, tau=0.1).run(key, model, x, y)
    both = smoother.success & record.success
    assert smoother.distance[both].mean() < record.distance[both].mean()


def test_targets_are_reached(digits, key):
    model, x, y = digits
    target = (y + 1) % 10
    record = Flow(steps=80, tau=0.005, goal=Target()).run(key, model, x, target)
    assert record.success.mean() > 0.5
    np.testing.assert_array_equal(record.success, jnp.argmax(model(record.x_adv), 1) == target)


def test_a_wrong_image_is_returned_at_once_and_as_it_is(digits, key):
    model, x, y = digits
    record = Flow(steps=20).run(key, model, x[:4], (y[:4] + 1) % 10)
    np.testing.assert_array_equal(record.x_adv, x[:4])
    assert (record.backwards == 1).all()


def test_no_pixel_moves_farther_than_the_limit(digits, key):
    model, x, y = digits
    attack = Flow(max_shift=0.3, learning_rate=0.2, tau=0.0)
    state = init(attack, key, model, x, y, jnp.int32(100))
    for i in range(4):
        state = step(attack, i, state, model, x, y)
    np.testing.assert_allclose(jnp.abs(state.flow).max(), 0.3, rtol=1e-6)
    np.testing.assert_allclose(attack.scaled(2).max_shift, 0.6, rtol=1e-6)
    assert np.isinf(Flow().scaled(0).max_shift)


@pytest.mark.parametrize(
    "fields",
    [{"ball": L2(1.0)}, {"ball": L2(mask=np.ones((8, 8, 1)))}, {"steps": -1}, {"tau": -1}],
)
def test_what_it_does_not_take_is_refused(fields):
    with pytest.raises(ValueError, match="Flow: given .* expected"):
        Flow(**fields)
