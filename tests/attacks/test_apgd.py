"""APGD against the published algorithm, written here once more, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L0, L1, L2, Linf, Target, Targeted, Undetected, cross_entropy, replace
from advjax.attacks.apgd import APGD
from advjax.losses import dlr, targeted_dlr

SHAPE = (4, 3, 2)


def waves(first, second, x):
    return jnp.sin(x.reshape(x.shape[0], -1) @ first) @ second


@pytest.fixture(scope="module")
def network():
    """A small network of sines, which is neither convex nor concave, and its images."""
    rng = np.random.default_rng(1)
    first = rng.normal(size=(24, 16)).astype(np.float32)
    second = rng.normal(size=(16, 5)).astype(np.float32)
    x = rng.uniform(0.05, 0.95, size=(8, *SHAPE)).astype(np.float32)
    model = jax.tree_util.Partial(waves, jnp.asarray(first), jnp.asarray(second))
    y = np.asarray(jnp.argmax(model(x), axis=1), np.int32)

    def loss_and_grad(x, y):
        inner = x.reshape(-1, 24) @ first
        logits = np.sin(inner) @ second
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        p = shifted / shifted.sum(1, keepdims=True)
        grad = ((p - np.eye(5)[y]) @ second.T * np.cos(inner)) @ first.T
        return -np.log(p[np.arange(len(y)), y]), grad.reshape(x.shape), logits

    return model, jnp.asarray(x), jnp.asarray(y), loss_and_grad


def nearest(norm, eps, x, point):
    """The image nearest to a point in ball and box, by bisection on the multiplier."""
    delta = point - x
    if norm == "linf":
        return np.clip(x + np.clip(delta, -eps, eps), 0, 1)
    if norm == "l2":
        shrunk = lambda t: np.clip(x + t * delta, 0, 1)  # t from 1 down to 0
        size = lambda z: np.linalg.norm((z - x).ravel())
    else:
        largest = np.abs(delta).max()
        shrunk = lambda t: np.clip(
            x + np.sign(delta) * np.maximum(np.abs(delta) - (1 - t) * largest, 0), 0, 1
        )
        size = lambda z: np.abs(z - x).sum()
    low, high = 0.0, 1.0
    if size(shrunk(1.0)) <= eps:
        return shrunk(1.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if size(shrunk(middle)) <= eps else (low, middle)
    return shrunk(low)


def published(norm, eps, x, y, start, loss_and_grad, steps):
    """Croce & Hein 2020, algorithm 1, for one image; all iterates and step sizes."""
    call = lambda z: [value[0] for value in loss_and_grad(z[None], y[None])]
    shares = [0, 0.22]  # p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    checkpoints = [int(np.ceil(round(p * steps, 6))) for p in shares]
    eta, iterates, etas = 2 * eps, [start], []
    losses, grads = map(list, zip(call(start)[:2], strict=True))
    best, best_at_check, eta_at_check = 0, losses[0], None
    current, before, grad, place = start, start, grads[0], 1
    for k in range(steps):
        if k == checkpoints[place]:
            window = range(checkpoints[place - 1], k)
            rises = sum(losses[i + 1] > losses[i] for i in window)
            stuck = eta_at_check == eta and best_at_check == losses[best]
            eta_at_check, best_at_check = eta, losses[best]
            if rises <= 0.75 * len(window) or stuck:
                eta, current, grad = eta / 2, iterates[best], grads[best]
            place += 1
        way = np.sign(grad) if norm == "linf" else grad / np.linalg.norm(grad)
        z = nearest(norm, eps, x, current + eta * way)
        share = 0.75 if k else 1.0
        new = nearest(
            norm, eps, x, current + share * (z - current) + (1 - share) * (current - before)
        )
        etas.append(eta)
        before, current = current, new
        loss, grad, _ = call(new)
        iterates.append(new), losses.append(loss), grads.append(grad)
        if loss > losses[best]:
            best = k + 1
    return iterates, etas


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


def log_loss(logits, y):
    """Cross-entropy in the logits' own precision."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]


@pytest.mark.parametrize("ball", [Linf(0.125), L2(0.5), L1(1.5)], ids=["linf", "l2", "l1"])
def test_iterates_and_step_sizes_are_the_published_ones(network, key, ball):
    """In double precision, where few comparisons of two losses are up to rounding."""
    model, x, y, loss_and_grad = network
    with jax.enable_x64(), jax.numpy_dtype_promotion("standard"):
        model, x = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), (model, x))
        attack = APGD(ball=ball, loss=log_loss, until_success=False)
        step = jax.jit(lambda i, state: attack.step(i, state, model, x, y))
        state = jax.jit(attack.init)(key, model, x, y, jnp.int32(100))
        images, sizes = [state.x_adv], []
        for i in range(100):
            state = step(np.int32(i), state)
            images.append(state.x_adv)
            sizes.append(ball.eps * state.step_size)
    images, sizes = np.stack(images, 1), np.stack(sizes, 1)
    norm, agreed, least = type(ball).__name__.lower(), [], []
    for b in range(x.shape[0]):
        arguments = (ball.eps, np.asarray(x[b]), np.asarray(y[b]), images[b, 0], loss_and_grad, 100)
        oracle = published_l1(*arguments) if norm == "l1" else published(norm, *arguments)
        iterates = np.stack(oracle[0])
        close = np.isclose(images[b, 1:], iterates[1:], atol=1e-7).reshape(100, -1).all(1)
        close &= np.isclose(sizes[b], oracle[1])
        agreed.append(100 if close.all() else int(np.argmin(close)))
        exact = norm != "l1"
        least.append(100 if exact else steps_before_rounding(np.asarray(x[b]), images[b], iterates))
        assert len(np.unique(oracle[1])) > 4  # the rules have been at work
    assert np.mean(agreed) > 80, agreed
    # Two losses may still be equal up to rounding, late in a run.
    assert sum(a >= n for a, n in zip(agreed, least, strict=True)) >= 7, (agreed, least)


def test_checkpoints_of_a_hundred_steps(network, key):
    model, x, y, _ = network
    attack = APGD(ball=Linf(0.1))
    state = jax.jit(attack.init)(key, model, x, y, jnp.int32(100))
    check = jax.jit(attack._check_rises)
    seen = [int(state.checkpoint)]
    for i in range(100):
        state, _ = check(state, np.int32(i), x)
        seen.append(int(state.checkpoint))
    np.testing.assert_array_equal(np.unique(seen), [22, 41, 57, 70, 80, 87, 93, 99, 105])


def score(weights, bias, others, x):
    """The score for label 1 in the middle of logits that do not depend on the image."""
    value = x.reshape(x.shape[0], -1) @ weights + bias
    return jnp.concatenate([jnp.zeros_like(value)[:, None], value[:, None], others[: len(x)]], 1)


def best_score(ball, gain, room):
    """The largest ``gain @ delta`` in the ball, with ``delta`` at most ``room``, exactly."""
    if isinstance(ball, Linf):
        return (gain * np.minimum(room, ball.eps)).sum()
    if isinstance(ball, L1):
        order = np.argsort(-gain)
        before = np.concatenate([[0], np.cumsum(room[order])[:-1]])
        return (gain[order] * np.clip(ball.eps - before, 0, room[order])).sum()
    low, high = 0.0, 1e4
    for _ in range(100):
        t = (low + high) / 2
        low, high = (t, high) if np.linalg.norm(np.minimum(room, t * gain)) < ball.eps else (low, t)
    return (gain * np.minimum(room, low * gain)).sum()


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
