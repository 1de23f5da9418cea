"""What every ball keeps to, against slow oracles; a new ball is one more row."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advjax import L0, L1, L2, PGD, Linf, example_keys, replace

BALLS = {"linf": Linf(0.3), "l2": L2(0.7), "l1": L1(1.3), "l0": L0(3)}
TABLE = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS.keys())


@jax.jit
def project(ball, delta):
    return ball.project(delta)


@jax.jit
def apply(ball, x, delta):
    return ball.apply(x, delta)


def norm(ball, delta):
    flat = np.asarray(delta, np.float64).reshape(delta.shape[0], -1)
    order = {Linf: np.inf, L2: 2, L1: 1, L0: 0}[type(ball)]
    return np.array([np.linalg.norm(row, order) for row in flat])


def nearest(ball, delta, eps):
    """The Euclidean projection of one vector, by sorting or in closed form, in float64."""
    d = np.asarray(delta, np.float64)
    if isinstance(ball, Linf):
        return np.clip(d, -eps, eps)
    if isinstance(ball, L2):
        return d * min(1, eps / max(np.linalg.norm(d), 1e-300))
    if isinstance(ball, L0):
        kept = np.argsort(-np.abs(d), kind="stable")[: int(eps)]
        out = np.zeros_like(d)
        out[kept] = d[kept]
        return out
    if np.abs(d).sum() <= eps:
        return d
    u = np.sort(np.abs(d))[::-1]
    thresholds = (np.cumsum(u) - eps) / np.arange(1, d.size + 1)
    rho = np.nonzero(u > thresholds)[0][-1] if eps > 0 else 0
    return np.sign(d) * np.maximum(np.abs(d) - thresholds[rho], 0)


@TABLE
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 100.0]),
    ties=st.booleans(),
    factor=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_projection_is_the_nearest_point_and_idempotent(ball, seed, scale, ties, factor):
    rng = np.random.default_rng(seed)
    delta = rng.normal(size=(4, 2, 3)).astype(np.float32) * np.float32(scale)
    if ties:
        delta = np.sign(delta) * np.float32(scale)
    ball = ball.scaled(np.float32(factor))
    eps = float(ball.eps)
    projected = np.asarray(project(ball, delta))
    for i in range(4):
        expected = nearest(ball, delta[i].ravel(), eps).reshape(2, 3)
        np.testing.assert_allclose(projected[i], expected, atol=2e-6 * max(1, scale))
    twice = project(ball, projected)
    np.testing.assert_allclose(twice, projected, atol=1e-6 * max(1, scale))
    assert (norm(ball, projected) <= eps * (1 + 1e-5) + 1e-5 * scale * 1e-2).all()
    assert (norm(ball, projected) <= norm(ball, delta) * (1 + 1e-6) + 1e-12).all()


def nearest_in_box(ball, delta, eps, lower, upper):
    """The projection on ball and box together, by bisection in float64 (L0: by trying all)."""
    d = np.asarray(delta, np.float64)
    if isinstance(ball, Linf):
        return np.clip(d, np.maximum(lower, -eps), np.minimum(upper, eps))
    if isinstance(ball, L0):
        best, error = None, np.inf
        for kept in itertools.combinations(range(d.size), min(int(eps), d.size)):
            point = np.zeros_like(d)
            point[list(kept)] = np.clip(d, lower, upper)[list(kept)]
            if np.square(point - d).sum() < error:
                best, error = point, np.square(point - d).sum()
        return best
    if isinstance(ball, L2):
        point = lambda t: np.clip(d / (1 + t), lower, upper)
        size = np.linalg.norm
    else:
        point = lambda t: np.clip(np.sign(d) * np.maximum(np.abs(d) - t, 0), lower, upper)
        size = lambda v: np.abs(v).sum()
    if size(point(0)) <= eps:
        return point(0)
    low, high = 0.0, 1e9
    for _ in range(300):
        middle = (low + high) / 2
        low, high = (middle, high) if size(point(middle)) > eps else (low, middle)
    return point(high)


@TABLE
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    factor=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_projection_on_ball_and_box_together_is_the_nearest_point(ball, seed, scale, factor):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, size=(4, 2, 3)).astype(np.float32)
    x[0, 0] = [0, 1, 0]
    delta = rng.normal(size=x.shape).astype(np.float32) * np.float32(scale)
    ball = ball.scaled(np.float32(factor))
    applied = np.asarray(apply(ball, x, delta))
    assert applied.min() >= 0 and applied.max() <= 1
    for i in range(4):
        limits = (-x[i].ravel().astype(float), 1 - x[i].ravel().astype(float))
        expected = nearest_in_box(ball, delta[i].ravel(), float(ball.eps), *limits)
        np.testing.assert_allclose((applied - x)[i].ravel(), expected, atol=3e-6 * max(1, scale))


@TABLE
def test_size_is_the_norm(ball):
    delta = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(ball.size(jnp.asarray(delta)), norm(ball, delta), rtol=1e-5)
    tiny = jnp.asarray(delta) * 1e-30  # squares underflow
    np.testing.assert_allclose(ball.size(tiny), norm(ball, tiny), rtol=1e-5)


@TABLE
def test_draws_are_inside_reach_far_and_are_reproducible(ball):
    x = jnp.full((2000, 3, 2), 0.5)
    delta = np.asarray(ball.sample(jax.random.key(0), x))
    sizes = norm(ball, delta)
    assert (sizes <= float(ball.eps) + 1e-5).all()
    assert sizes.max() > 0.95 * float(ball.eps)
    keys = example_keys(jax.random.key(0), 2000)
    np.testing.assert_array_equal(delta[7:9], ball.sample(keys[7:9], x[:2]))
    if not isinstance(ball, L0):  # symmetric, and uniform: P(size < t) = (t / eps) ** d
        assert np.abs(delta.mean(axis=0)).max() < 4 * delta.std() / np.sqrt(2000)
        half = (sizes < 0.9 * float(ball.eps)).mean()
        assert abs(half - 0.9**6) < 4 * np.sqrt(0.25 / 2000)


@TABLE
def test_no_direction_beats_the_steepest(ball):
    """For L1 with ``fraction=0``; L0 has no steepest direction, its projection chooses."""
    rng = np.random.default_rng(1)
    grad = rng.normal(size=(5, 3, 2)).astype(np.float32)
    if isinstance(ball, L1):
        ball = replace(ball, fraction=0.0)
    unit = np.asarray(ball.steepest(jnp.asarray(grad)))
    gain = (unit * grad).sum(axis=(1, 2))
    if isinstance(ball, L0):
        np.testing.assert_allclose(np.abs(unit).max(axis=(1, 2)), 1, rtol=1e-6)
        return
    np.testing.assert_allclose(norm(ball, unit), 1, rtol=1e-5)
    for _ in range(200):
        other = rng.normal(size=grad.shape)
        other /= norm(ball, other)[:, None, None]
        assert ((other * grad).sum(axis=(1, 2)) <= gain + 1e-6).all()


@TABLE
@pytest.mark.parametrize("scale", [0.0, 1e-35, 1e30])
def test_directions_are_finite_for_any_gradient(ball, scale):
    grad = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2)), jnp.float32) * scale
    unit = ball.steepest(grad)
    assert np.isfinite(unit).all()
    assert (unit == 0).all() if scale == 0 else (unit != 0).any()


def test_l1_moves_the_largest_fraction_of_the_pixels_that_can_move():
    grad = jnp.asarray([[4.0, -3.0, 2.0, 1.0]])
    np.testing.assert_allclose(L1(1.0, fraction=0.5).steepest(grad), [[0.5, -0.5, 0, 0]])
    x = jnp.asarray([[1.0, 0.0, 0.5, 0.5]])
    np.testing.assert_allclose(L1(1.0, fraction=0.5).steepest(grad, x), [[0.5, -0.5, 0.5, 0.5]])


@TABLE
def test_mask_and_channel_bounds_hold(ball):
    mask = np.zeros((3, 2, 2), np.float32)
    mask[1] = 1
    ball = replace(ball, mask=mask, lower=(0.0, 0.4), upper=np.array([0.6, 1.0]))
    x = jnp.full((50, 3, 2, 2), 0.5)
    out = ball.apply(x, ball.sample(jax.random.key(1), x))
    assert (out[:, 0] == 0.5).all() and (out[:, 2] == 0.5).all() and (out[:, 1] != 0.5).any()
    assert out[..., 0].max() <= 0.6 and out[..., 1].min() >= 0.4


@TABLE
@pytest.mark.parametrize("eps", [-0.1, float("nan"), [0.1, -1.0], []])
def test_bad_eps_is_refused(ball, eps):
    with pytest.raises(ValueError, match="expected numbers >= 0"):
        replace(ball, eps=eps)


def test_crossed_bounds_are_refused():
    with pytest.raises(ValueError, match="lower < upper"):
        Linf(0.1, lower=1.0, upper=0.0)


@TABLE
def test_a_ball_without_eps_is_the_box(ball):
    """It neither cuts nor scales, and an attack with a budget refuses it."""
    free = type(ball)()
    delta = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4)), jnp.float32)
    np.testing.assert_allclose(free.project(delta), delta, rtol=1e-6)
    assert np.isinf(free.scaled(0.5).eps) and np.isinf(free.scaled(0).eps)
    with pytest.raises(ValueError, match="expected a finite eps"):
        PGD(ball=free)
