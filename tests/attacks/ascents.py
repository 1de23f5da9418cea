"""What the tests of APGD and ACG share: models, exact answers, and Auto-PGD written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from advjax import L1, Linf

SHAPE = (4, 3, 2)


def waves(first, second, x):
    return jnp.sin(x.reshape(x.shape[0], -1) @ first) @ second


def sines():
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


def published(
    norm, eps, x, y, start, loss_and_grad, steps, *, share=0.75, conjugate=lambda grad, *_: grad
):
    """Croce & Hein 2020, algorithm 1, for one image; all iterates and step sizes.

    ``share`` of the new step goes in, the rest is momentum. A step follows ``conjugate`` of the
    gradient here, the one before, and the direction that led from there (zeros at the start).
    """
    call = lambda z: [value[0] for value in loss_and_grad(z[None], y[None])]
    shares = [0, 0.22]  # p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    checkpoints = [int(np.ceil(round(p * steps, 6))) for p in shares]
    eta, iterates, etas = 2 * eps, [start], []
    losses, grads = map(list, zip(call(start)[:2], strict=True))
    led = [(np.zeros_like(start), np.zeros_like(start))]  # to each iterate: gradient and direction
    best, best_at_check, eta_at_check = 0, losses[0], None
    current, before, here, place = start, start, 0, 1
    for k in range(steps):
        if k == checkpoints[place]:
            window = range(checkpoints[place - 1], k)
            rises = sum(losses[i + 1] > losses[i] for i in window)
            stuck = eta_at_check == eta and best_at_check == losses[best]
            eta_at_check, best_at_check = eta, losses[best]
            if rises <= 0.75 * len(window) or stuck:
                eta, current, here = eta / 2, iterates[best], best
            place += 1
        direction = conjugate(grads[here], *led[here])
        led.append((grads[here], direction))
        way = np.sign(direction) if norm == "linf" else direction / np.linalg.norm(direction)
        z = nearest(norm, eps, x, current + eta * way)
        new = share if k else 1.0
        moved = nearest(
            norm, eps, x, current + new * (z - current) + (1 - new) * (current - before)
        )
        etas.append(eta)
        before, current, here = current, moved, k + 1
        loss, grad, _ = call(moved)
        iterates.append(moved), losses.append(loss), grads.append(grad)
        if loss > losses[best]:
            best = k + 1
    return iterates, etas


def log_loss(logits, y):
    """Cross-entropy in the logits' own precision."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]


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


def trajectory(attack, key, model, x, y):
    """Iterates ``[B, 101, ...]`` of 100 steps in double precision; step sizes ``[B, 100]``."""
    model, x = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), (model, x))
    step = jax.jit(lambda i, state: attack.step(i, state, model, x, y))
    state = jax.jit(attack.init)(key, model, x, y, jnp.int32(100))
    images, sizes = [state.x_adv], []
    for i in range(100):
        state = step(np.int32(i), state)
        images.append(state.x_adv)
        sizes.append(attack.ball.eps * state.schedule.step_size)
    return np.stack(images, 1), np.stack(sizes, 1)
