"""A linear softmax network on six small images, for objectives with a closed form."""

import jax
import numpy as np

from advjax.types import Net

_RNG = np.random.default_rng(0)
X = _RNG.uniform(0.2, 0.8, (6, 4, 4, 1)).astype(np.float32)
Y = np.asarray([0, 1, 2, 3, 0, 1], np.int32)
W = _RNG.normal(size=(16, 4)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 6)
BATCH = {"x": X, "y": Y}


def linear(params, stats, x, *, key=None, train=False):
    return x.reshape(x.shape[0], -1) @ params, stats


@jax.jit
def run(objective, w, keys, batch):
    """``((loss, aux), gradient)``."""
    loss = lambda w: objective(keys, linear, w, {}, batch)
    return jax.value_and_grad(loss, has_aux=True)(w)


@jax.jit
def run_crafting(objective, w, keys, batch):
    """``((loss, aux), gradient, x_adv)``."""
    loss = lambda w: objective(keys, linear, w, {}, batch)
    found = jax.value_and_grad(loss, has_aux=True)(w)
    return *found, objective.craft(Net(keys, linear, w, {}), batch)["x_adv"]


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
