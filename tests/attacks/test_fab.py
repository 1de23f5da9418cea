"""FAB: exact projections, and the closest point of linear models."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import linear

from advjax import L0, L1, L2, Linf, Target, Targeted, Undetected, example_keys, load
from advjax.attacks.core.minimal import at_distance
from advjax.attacks.fab import FAB, onto_plane

BALLS = {"linf": Linf(), "l2": L2(), "l1": L1()}


def size(name, step):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[name]
    return np.linalg.norm(step, order, axis=-1)


def distance_to_plane(name, w, c, x):
    """Of x in the unit box to the plane ``w . (z - x) = c`` in it; infinite where there is none.

    By bisection in float64 on how much of every pixel's room is used, in L1 by order of weight.
    """
    w, c = (w, c) if c >= 0 else (-w, -c)
    room, a = np.where(w > 0, 1 - x, x), np.abs(w)
    if a @ room < c:
        return np.inf
    if name == "l1":
        order = np.argsort(-a)
        gains = np.cumsum((a * room)[order])
        n = np.searchsorted(gains, c)
        before = gains[n - 1] if n else 0.0
        return room[order][:n].sum() + (c - before) / a[order][n]
    steps = lambda t: np.minimum(t if name == "linf" else t * a, room)
    low, high = 0.0, 1.0
    while a @ steps(high) < c:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if a @ steps(middle) < c else (low, middle)
    return size(name, steps(high))


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(5)
    x = rng.uniform(size=(12, 6, 5)).astype(np.float32)
    x[:, :2] = np.round(x[:, :2])  # pixels on the bounds
    weights = rng.normal(size=(30, 6)).astype(np.float32)
    model = jax.tree_util.Partial(linear, jnp.asarray(weights))
    x = jnp.asarray(x)
    return model, weights.astype(np.float64), x, jnp.argmax(model(x), axis=1)


def oracle(name, weights, x, y, k):
    """``[B]`` distances to the boundary between y and k, each ``[B]``."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    slopes = (weights[:, k] - weights[:, y]).T
    return np.array(
        [distance_to_plane(name, w, -(w @ row), row) for w, row in zip(slopes, flat, strict=True)]
    )


def candidates(name, w, goal, lower, upper):
    """Points of ``w . r = goal`` in a box, the one of least norm among them.

    In L2 it is the nearest point of some face: pixels at a limit or free. In L1 it is a vertex:
    pixels at a limit or at rest, but one. In L-inf those that are free move equally.
    """
    for states in itertools.product((-1, 0, 1), repeat=len(w)):
        states = np.array(states)
        r = np.where(states < 0, lower, np.where(states > 0, upper, 0.0))
        free = [states == 0]
        if name == "l1":
            free = list(np.eye(len(w), dtype=bool))
        for chosen in free:
            if not chosen.any():
                continue
            speed = np.sign(w) if name == "linf" else w
            r_new = np.where(chosen, 0, r)
            gap = goal - w @ r_new
            r_new = r_new + np.where(chosen, speed * gap / (w[chosen] @ speed[chosen]), 0)
            if (r_new >= lower - 1e-9).all() and (r_new <= upper + 1e-9).all():
                yield r_new


@pytest.mark.parametrize("name", BALLS)
def test_projections_equal_brute_force_in_six_dimensions(name):
    rng = np.random.default_rng(7)
    slopes = rng.normal(size=(8, 6)).astype(np.float32)
    slopes[0, :3] = slopes[0, 0]  # ties
    slopes[1, 2:] = 0  # pixels without a gradient
    lower = -rng.uniform(size=(2, 8, 6)).astype(np.float32)
    upper = rng.uniform(size=(2, 8, 6)).astype(np.float32)
    lower[0, 2, :4] = 0  # pixels on the bound
    reach = np.maximum(slopes * lower, slopes * upper).sum(-1)
    needed = (reach * np.linspace(0.05, 0.95, 8)).astype(np.float32)
    steps = np.asarray(jax.jit(onto_plane)(BALLS[name], slopes[None], needed, lower, upper))
    assert (steps >= lower - 1e-6).all() and (steps <= upper + 1e-6).all()
    np.testing.assert_allclose((steps * slopes).sum(-1), needed, rtol=2e-6)
    for p, b in itertools.product(range(2), range(8)):
        w, goal = slopes[b].astype(float), float(needed[p, b])
        used = w != 0
        low, high = lower[p, b].astype(float), upper[p, b].astype(float)
        points = candidates(name, w[used], goal, low[used], high[used])
        best = min(size(name, r) for r in points)
        assert size(name, steps[p, b]) == pytest.approx(best, rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("name", BALLS)
def test_out_of_reach_and_no_gradient(name):
    slopes = np.array([[1.0, -2, 3], [0, 0, 0], [1e-30, 2e-30, 0]], np.float32)
    lower, upper = np.full((1, 3, 3), -0.25, np.float32), np.full((1, 3, 3), 0.5, np.float32)
    steps = jax.jit(onto_plane)(
        BALLS[name], slopes[None], np.full((1, 3), 1e6, np.float32), lower, upper
    )[0]
    np.testing.assert_allclose(steps[0], [0.5, -0.25, 0.5])  # the corner nearest to the plane
    np.testing.assert_array_equal(steps[1], 0)
    np.testing.assert_allclose(steps[2], [0.5, 0.5, 0])


@pytest.mark.parametrize("name, tolerance", [("linf", 1.01), ("l2", 1.01), ("l1", 1.05)])
def test_it_finds_the_closest_point_in_the_box_of_linear_models(name, tolerance, problem, key):
    model, weights, x, y = problem
    attack = FAB(ball=BALLS[name], steps=30)
    record = attack.run(key, model, x, y)
    label = np.asarray(y)
    distances = np.stack([oracle(name, weights, x, label, (label + j) % 6) for j in range(1, 6)])
    closest = distances.min(axis=0)
    assert record.success.all()
    assert (record.distance >= closest * (1 - 1e-4)).all()
    assert (record.distance <= closest * tolerance).all()
    # One pass of the model a step, the last point, the last judgement.
    assert (record.forwards == 32).all() and (record.backwards == 30 * 5).all()

    ranks = np.argsort(-np.asarray(model(x)), axis=1)
    for rank in (1, 3):  # one program
        record = FAB(ball=BALLS[name], steps=30, rank=rank).run(key, model, x, y)
        aim = oracle(name, weights, x, label, ranks[:, rank])
        reached = np.isfinite(aim)
        assert (record.success | ~reached).all()
        assert (record.distance <= aim * tolerance)[reached].all()
        assert (record.backwards[reached] == 30).all() and (record.forwards[reached] == 32).all()


def test_targeted_finds_the_closest_point_of_its_class(key):
    """Two classes: the target's boundary is the only one."""
    name, tolerance = "l2", 1.01
    rng = np.random.default_rng(11)
    weights = rng.normal(size=(30, 2)).astype(np.float32)
    x = jnp.asarray(rng.uniform(0.1, 0.9, size=(12, 30)), jnp.float32)
    model = jax.tree_util.Partial(linear, jnp.asarray(weights))
    y = np.asarray(jnp.argmax(model(x), axis=1))
    record = Targeted(FAB(ball=BALLS[name], steps=30)).run(key, model, x, jnp.asarray(1 - y))
    closest = oracle(name, weights.astype(float), x, y, 1 - y)
    assert record.success.all()
    assert (record.distance <= closest * tolerance).all()
    assert (record.distance >= closest * (1 - 1e-4)).all()


def test_ranks_beyond_the_classes_do_nothing(problem, traces, key):
    model, _, x, y = problem
    record = FAB(ball=L2(), steps=30, rank=6).run(key, model, x, y)
    np.testing.assert_array_equal(record.x_adv, x)
    assert (record.forwards == 1).all() and (record.backwards == 0).all()  # the last judgement


def test_ranks_are_one_program(tiny, traces, key):
    model, _, x, y = tiny
    FAB(ball=Linf(0.3), steps=2, rank=1)(key, model, x, y)
    before = len(traces)
    for rank in range(2, 5):
        FAB(ball=Linf(0.3), steps=3, rank=rank, alpha_max=0.2)(key, model, x, y)
    assert len(traces) == before


def test_until_success_stops_at_the_first_image_within_eps(problem, key):
    model, _, x, y = problem
    free = FAB(ball=L2(), steps=20).run(key, model, x, y)
    eps = float(jnp.median(free.distance)) * 1.001
    record = FAB(ball=L2(eps), steps=20, until_success=True).run(key, model, x, y)
    inside = np.asarray(free.distance) <= eps
    np.testing.assert_array_equal(record.success, inside)
    assert (record.forwards[inside] < 22).all() and (record.forwards[~inside] == 22).all()
    assert (record.distance <= eps + 1e-5).all()


def test_a_random_start_lies_at_half_of_eps(problem, key):
    _, _, x, _ = problem
    for ball in (Linf(0.1), L2(0.5), L1(1.0)):
        start = jax.jit(at_distance)(ball, example_keys(key, x.shape[0]), x, ball.eps / 2)
        moved = ball.size(start - x)
        assert (moved <= ball.eps / 2 + 1e-6).all() and (moved > ball.eps / 6).all()
    with pytest.raises(ValueError, match="finite eps"):
        FAB(ball=L2(), random_start=True)


def test_misclassified_images_stay_and_cost_one_look(problem, key):
    model, _, x, y = problem
    record = FAB(ball=L2(), steps=5).run(key, model, x, (y + 1) % 6)
    np.testing.assert_array_equal(record.x_adv, x)
    assert (record.forwards == 2).all() and (record.first_success == 0).all()


@pytest.mark.optimised
def test_the_published_mean_distance_on_published_weights(lenet5, shared, key):
    """AdverTorch's benchmark: mean L-inf .1092 after 20 steps, on its normally trained LeNet5."""
    model = lenet5("cln")
    test = load("mnist", "test", data_dir=shared / "tfds")
    pick = np.random.default_rng(0).permutation(len(test.x))[:30]
    x = np.asarray(test.x)[pick].reshape(-1, 28, 28, 1) / np.float32(255)
    record = FAB(ball=Linf(), steps=20).run(key, model, x, np.asarray(test.y)[pick])
    found = np.asarray(record.distance)[np.asarray(record.first_success) > 0]
    assert record.success.all() and len(found) >= 28
    # The standard deviation over images is .02, so the standard error of 30 is 4 %.
    assert 0.9 * 0.1092 < found.mean() < 1.1 * 0.1092


def test_fab_refusals_say_what_is_taken():
    with pytest.raises(TypeError, match="expected Linf, L2 or L1"):
        FAB(ball=L0(3))
    with pytest.raises(ValueError, match="integers >= 1"):
        FAB(ball=L2(), rank=0)
    with pytest.raises(ValueError, match="one of the two"):
        FAB(ball=L2(), rank=1, goal=Target())
    with pytest.raises(TypeError, match="goal=Undetected.*expected Misclassify.* or Target"):
        FAB(ball=L2(), goal=Undetected())
    assert FAB(ball=L2(), rank=1).with_goal(Target()).rank is None
