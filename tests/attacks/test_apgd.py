"""APGD against the published algorithm, written here once more, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ascents import best_score, log_loss, nearest, published, score, sines, trajectory

from advjax import L0, L1, L2, Linf, Target, Targeted, Undetected, cross_entropy, replace
from advjax.attacks.apgd import APGD
from advjax.losses import dlr, targeted_dlr


@pytest.fixture(scope="module")
def network():
    return sines()


def published_l1(eps, x, y, start, loss_and_grad, steps):
    """Croce & Hein 2021, algorithm 1, for one image; all iterates, step sizes and counts."""
    call = lambda z: [value[0] for value in loss_and_grad(z[None], y[None])]
    features, window = x.size, max(steps * 4 // 100, 1)
    eta, moved, pixels = eps, int(np.ceil(0.2 * features)), features
    loss, grad, _ = call(start)
    best, best_loss, best_grad = start, loss, grad
    current, iterates, etas = start, [start], []
    for k in range(steps):
        if k and k % window == 0:
            now = int((best != x).sum())
            if now < 0.95 * pixels:
                eta, current, grad = eps, best, best_grad
            else:
                eta = max(eta / 1.5, eps / 10)
            pixels, moved = now, max(int(np.ceil(now / 1.5)), 1)
        large = np.argsort(-np.abs(grad).ravel())[:moved]
        way = np.zeros(features)
        way[large] = np.sign(grad).ravel()[large] / moved
        current = nearest("l1", eps, x, current + eta * way.reshape(x.shape))
        etas.append(eta)
        iterates.append(current)
        loss, grad, _ = call(current)
        if loss > best_loss:
            best, best_loss, best_grad = current, loss, grad
    return iterates, etas


def steps_before_rounding(x, *runs):
    """Until a pixel is put back to within rounding of where it was: whether the L1 rules then count
    it as moved hangs on the last bit."""
    moved = np.abs(np.stack(runs) - x).reshape(len(runs), len(runs[0]), -1)
    hangs = ((moved > 0) & (moved < 1e-9)).any((0, 2))
    return int(np.argmax(hangs)) if hangs.any() else len(hangs) - 1


@pytest.mark.parametrize("ball", [Linf(0.125), L2(0.5), L1(1.5)], ids=["linf", "l2", "l1"])
def test_iterates_and_step_sizes_are_the_published_ones(network, key, ball):
    """In double precision, where few comparisons of two losses are up to rounding."""
    model, x, y, loss_and_grad = network
    with jax.enable_x64(), jax.numpy_dtype_promotion("standard"):
        attack = APGD(ball=ball, loss=log_loss, until_success=False)
        images, sizes = trajectory(attack, key, model, x, y)
    x = np.asarray(x, np.float64)
    norm, agreed, least = type(ball).__name__.lower(), [], []
    for b in range(x.shape[0]):
        arguments = (ball.eps, x[b], np.asarray(y[b]), images[b, 0], loss_and_grad, 100)
        oracle = published_l1(*arguments) if norm == "l1" else published(norm, *arguments)
        iterates = np.stack(oracle[0])
        close = np.isclose(images[b, 1:], iterates[1:], atol=1e-7).reshape(100, -1).all(1)
        close &= np.isclose(sizes[b], oracle[1])
        agreed.append(100 if close.all() else int(np.argmin(close)))
        exact = norm != "l1"
        least.append(100 if exact else steps_before_rounding(x[b], images[b], iterates))
        assert len(np.unique(oracle[1])) > 4  # the rules have been at work
    assert np.mean(agreed) > 80, agreed
    # Two losses may still be equal up to rounding, late in a run.
    assert sum(a >= n for a, n in zip(agreed, least, strict=True)) >= 7, (agreed, least)


def test_checkpoints_of_a_hundred_steps(network, key):
    model, x, y, _ = network
    attack = APGD(ball=Linf(0.1))
    state = jax.jit(attack.init)(key, model, x, y, jnp.int32(100))
    update = jax.jit(type(state.schedule).update)
    schedule, seen = state.schedule, [int(state.schedule.checkpoint)]
    for i in range(100):
        schedule, _ = update(schedule, np.int32(i), state.best_loss, attack.rho)
        seen.append(int(schedule.checkpoint))
    np.testing.assert_array_equal(np.unique(seen), [22, 41, 57, 70, 80, 87, 93, 99, 105])


@pytest.mark.parametrize(
    "ball, classes, loss, share",
    [
        (Linf(0.2), 2, dlr, 0.999),
        (L2(0.8), 3, dlr, 0.99),
        (L1(2.0), 2, cross_entropy, 0.95),  # no step is shorter than eps / 10
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_reaches_the_optimum_of_a_linear_model(key, ball, classes, loss, share):
    rng = np.random.default_rng(3)
    weights = rng.normal(size=20).astype(np.float32)
    x = rng.uniform(0, 1, size=(6, 5, 4)).astype(np.float32)
    others = np.linspace(-30, -40, 6 * (classes - 2)).reshape(6, -1).astype(np.float32)
    model = jax.tree_util.Partial(score, jnp.asarray(weights), 0.1, jnp.asarray(others))
    y = jnp.argmax(model(x), axis=1)
    record = APGD(ball=ball, loss=loss, until_success=False).run(key, model, x, y)
    sign = np.asarray(1 - 2 * y)
    reached = sign * np.asarray(model(record.x_adv)[:, 1] - model(x)[:, 1])
    for b in range(6):
        gain = sign[b] * weights
        room = np.where(gain > 0, 1 - x[b].ravel(), x[b].ravel())
        best = best_score(ball, np.abs(gain), room)
        assert reached[b] <= best + 1e-4
        assert reached[b] >= share * best, reached[b] / best
    assert (ball.size(record.x_adv - x) <= ball.eps + 1e-5).all()


def test_stops_an_example_at_its_first_adversarial_image(tiny, key):
    model, _, x, y = tiny
    y = y.at[0].set((y[0] + 1) % 5)  # wrong from the start
    attack = APGD(ball=Linf(0.06), steps=30)
    record = attack.run(key, model, x, y)
    np.testing.assert_array_equal(record.x_adv[0], x[0])
    assert record.success[0] and record.first_success[0] == 0
    assert (record.forwards[0], record.backwards[0]) == (2, 0)
    fooled = np.asarray(record.success)
    assert 1 < fooled.sum() < 8, "the eps must fool some only"
    late = fooled & (np.asarray(record.first_success) > 0)
    assert late.any()
    # The image found at iterate n cost a gradient at each of iterates 0 to n.
    np.testing.assert_array_equal(record.backwards[late], record.first_success[late] + 1)
    assert (record.backwards[~fooled] == 30).all() and (record.forwards[~fooled] == 33).all()
    further = replace(attack, until_success=False).run(key, model, x, y)
    np.testing.assert_array_equal(record.success, further.success)
    assert (further.loss >= record.loss - 1e-6).all() and (further.loss > record.loss).any()
    assert (further.backwards == 30).all() and (further.forwards == 32).all()


def test_a_rank_goes_for_that_class(tiny, key):
    model, _, x, y = tiny
    order = np.argsort(-np.asarray(model(x)), axis=1)
    attack = APGD(ball=L2(1.5), steps=15, rank=1, until_success=False)
    for rank in (1, 3):
        record = replace(attack, rank=rank).run(key, model, x, y)
        gain = targeted_dlr(model(record.x_adv), y, jnp.asarray(order[:, rank]))
        np.testing.assert_allclose(record.loss, gain, rtol=1e-5)
        assert (gain > 0).all() and (gain > targeted_dlr(model(x), y, order[:, rank])).all()
    record = replace(attack, rank=5).run(key, model, x, y)  # there is no such class
    np.testing.assert_array_equal(record.x_adv, x)
    assert (record.backwards == 0).all() and not record.success.any()
    assert np.isfinite(record.loss).all()


def test_aimed_it_reaches_the_labels(tiny, key):
    model, _, x, y = tiny
    target = (y + 1) % 5
    record = Targeted(APGD(ball=L2(3.0), steps=20)).run(key, model, x, target)
    np.testing.assert_array_equal(jnp.argmax(model(record.x_adv), axis=1), target)


def test_a_shrinking_run_ends_in_the_ball_and_counts_nothing_before(network, key):
    model, x, y, _ = network
    ball = L1(0.3)
    attack = APGD(ball=ball, steps=40, shrink=True)
    record = attack.run(key, model, x, y)
    assert (ball.size(record.x_adv - x) <= ball.eps + 1e-5).all()
    assert 0 < record.success.sum() < 8, "the eps must fool some only"
    assert (record.first_success[record.success] >= 24).all()
    step = jax.jit(attack.step)
    state = jax.jit(attack.init)(key, model, x, y, jnp.int32(40))
    for i in range(40):
        limit = 3 if i < 12 else 2 if i < 24 else 1
        size = ball.size(state.x_adv - x)
        assert (size <= limit * ball.eps + 1e-5).all()
        assert (size > (limit - 0.5) * ball.eps).any()
        state = step(np.int32(i), state, model, x, y)


def test_other_budgets_ranks_and_counts_of_steps_are_no_new_program(tiny, traces, key):
    model, _, x, y = tiny
    APGD(ball=Linf(0.1), steps=5, rank=1)(key, model, x, y)
    before = len(traces)
    APGD(ball=Linf(np.float32(0.2)), steps=9, rank=np.int32(3))(key, model, x, y)
    APGD(ball=Linf(0), steps=100, rank=2)(key, model, x, y)
    assert len(traces) == before


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"ball": L0(3)}, "Linf, L2 or L1"),
        ({"ball": Linf()}, "finite"),
        ({"ball": Linf(0.1), "steps": -1}, "steps=-1"),
        ({"ball": Linf(0.1), "rank": 0}, "rank=0"),
        ({"ball": Linf(0.1), "rank": 1, "goal": Target()}, "goal=Target.*one of the two"),
        ({"ball": Linf(0.1), "rank": 1, "goal": Undetected()}, "with a rank.*goal=Undetected"),
        ({"ball": L2(0.1), "shrink": True}, "an L1 ball"),
        ({"ball": L2(0.1), "rho": 2}, "rho=2"),
        ({"ball": L2(0.1), "loss": dlr, "goal": Target()}, "loss=dlr and goal=Target"),
    ],
)
def test_what_it_cannot_take_it_refuses(fields, words):
    with pytest.raises((TypeError, ValueError), match=words) as error:
        APGD(**fields)
    assert "\n" not in str(error.value)
