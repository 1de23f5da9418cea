"""Attacks and models whose outcome is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import example_keys
from advjax.attacks import Attack
from advjax.balls import Linf
from advjax.goals import Misclassify
from advjax.pytrees import pytree, static
from advjax.types import Record

BATCHES: list[int] = []  # the batch size of every run of ``Brighten``


def brightness(x):
    """Class 0 or 1: darker or lighter than one half."""
    mean = x.reshape(x.shape[0], -1).mean(-1)
    return jnp.stack([0.5 - mean, mean - 0.5], -1) * 10


def greys(*levels):
    """Images of one grey each."""
    return np.broadcast_to(np.float32(levels)[:, None, None, None], (len(levels), 3, 4, 1)).copy()


@pytree
class Brighten(Attack):
    """Adds ``eps``; says ``claim``, whatever happened; ``noise`` times a draw of the key more."""

    ball: Linf
    noise: float = 0.0
    claim: bool = static(default=True)
    each: tuple = static(default=())

    goal = Misclassify()

    @property
    def bounds(self):
        return self.ball.lower, self.ball.upper

    def solve(self, key, model, x, y, *, record, loop=None):
        BATCHES.append(x.shape[0])
        keys = example_keys(key, x.shape[0])
        draw = jax.vmap(jax.random.uniform)(keys)
        eps = jnp.broadcast_to(self.ball.eps, x.shape[:1]) + self.noise * draw
        x_adv = x + eps.reshape((-1,) + (1,) * (x.ndim - 1))
        one = jnp.ones(x.shape[0], jnp.int32)
        return Record(
            x_adv=x_adv,
            success=one > (0 if self.claim else 1),
            invalid=one > 1,
            loss=draw,
            distance=eps,
            forwards=2 * one,
            backwards=one,
            first_success=one - 2,
            zero_gradient=0 * one,
        )

    def with_goal(self, goal):
        raise NotImplementedError

    def scaled(self, factor):
        return Brighten(ball=self.ball.scaled(factor), noise=self.noise)

    def stages(self):
        if not self.each:
            return ((None, self),)
        return tuple((i, Brighten(ball=Linf(e), noise=self.noise)) for i, e in enumerate(self.each))


@pytree
class Coin:
    """A randomised model: class 1 where the key's draw is above the image's mean."""

    stochastic = True

    def __call__(self, x, *, key):
        heads = jax.vmap(jax.random.uniform)(key) > x.reshape(x.shape[0], -1).mean(-1)
        return jnp.stack([~heads, heads], -1).astype(jnp.float32)
