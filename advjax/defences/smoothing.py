"""Randomised smoothing: the class that most noisy copies of an image get, with a certificate."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import as_model, example_keys, fold_in_each, is_stochastic
from advjax.arguments import check_count, check_number
from advjax.checks import check_images, classes_of
from advjax.evaluation.statistics import clopper_pearson
from advjax.pytrees import Array, ArrayLike, Key, pytree, static

ABSTAIN = -1  # in the place of a class
_CHOOSE, _ESTIMATE = 0, 1  # tags: the draws that choose a class and those that count it


class Certificate(NamedTuple):
    """What ``Smoothed.certify`` found, ``[B]`` each.

    Attributes:
      label: the smoothed classifier's class, or ``ABSTAIN``.
      radius: Euclidean: nothing closer to the image changes the class. 0 with ``ABSTAIN``.
      least: lower confidence bound of the class's probability under noise.
    """

    label: np.ndarray
    radius: np.ndarray
    least: np.ndarray

    def covers(self, y: Any, eps: float) -> np.ndarray:
        """``[B]`` bool: the class is ``y``, whatever happens within Euclidean distance ``eps``."""
        return (self.label == np.asarray(y)) & (self.radius > eps)


@pytree
class Smoothed:
    """Randomised smoothing: the class that ``x + N(0, sigma^2 I)`` gets most often (Cohen et al.,
    ICML 2019, eq. 1).

    Called, it is a randomised model: one noisy draw per example, for attacks under ``EOT`` and for
    ``evaluate``, which takes the majority. ``certify`` and ``predict`` are the paper's, with the
    probability ``alpha`` of a wrong answer per image. The noise leaves the box, as in the paper.
    The base model should have been trained on images with this noise.

    A certificate holds for Euclidean distances, and as far as the base model is a fixed function:
    rounding that depends on the batch is not covered.

    Attributes:
      model: the base, ``model(x) -> logits [B, K]``; may be randomised itself.
      sigma: standard deviation of the noise, in pixel units, > 0; a leaf.
      batch_size: how many noisy images go through the model at once; bounds the memory, changes no
        draw.
    """

    model: Any = dataclasses.field(kw_only=False)
    sigma: ArrayLike = dataclasses.field(kw_only=False)
    batch_size: int = static(default=512)
    stochastic = True

    def check(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))
        check_number("Smoothed", "sigma", self.sigma)
        check_count("Smoothed", "batch_size", self.batch_size)

    def __call__(self, x: Array, *, key: Key) -> Array:
        noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))
        seen = x + self.sigma * noise(fold_in_each(key, 0))
        if is_stochastic(self.model):
            return self.model(seen, key=fold_in_each(key, 1))
        return self.model(seen)

    def counts(self, key: Key, x: Any, n: int) -> np.ndarray:
        """``[B, K]``, how many of ``n`` noisy draws of each image get each class.

        Draw d of image i is that of ``fold_in(key_i, d)``. Logits that are not finite count for no
        class. Any ``n`` is the same program.

        Args:
          key: one key, or ``[B]`` keys; consumed.
          x: ``[B, ...]`` float images.
          n: at least 1.
        """
        check_count("Smoothed", "n", n)
        x = check_images(x)
        keys = example_keys(key, x.shape[0])
        classes = classes_of(self, x)
        blocks = []
        for first in range(0, x.shape[0], self.batch_size):
            rows = slice(first, first + self.batch_size)
            some = x[rows]
            total = jnp.zeros((len(some), classes), jnp.int32)
            draws = max(self.batch_size // len(some), 1)
            for start in range(0, n, draws):
                total = _count(self, keys[rows], some, total, start, n, draws=draws)
            blocks.append(np.asarray(total))
        return np.concatenate(blocks)

    def certify(
        self, key: Key, x: Any, n0: int = 100, n: int = 100_000, alpha: float = 0.001
    ) -> Certificate:
        """Classes with certified radii (Cohen et al. 2019, section 3.2.2, CERTIFY).

        ``n0`` draws choose the class, ``n`` others bound its probability from below
        (Clopper-Pearson, one-sided); the radius is ``sigma * Phi^-1`` of that bound.

        Args:
          key: one key, or ``[B]`` keys; consumed.
          x: ``[B, ...]`` float images.
          n0: draws that choose.
          n: draws that count.
          alpha: the probability that a certificate is wrong, per image, in (0, .5).
        """
        _check_alpha(alpha)
        from scipy.special import ndtri

        keys = example_keys(key, np.shape(x)[0])
        label = self.counts(fold_in_each(keys, _CHOOSE), x, n0).argmax(-1)
        found = self.counts(fold_in_each(keys, _ESTIMATE), x, n)
        hits = found[np.arange(len(label)), label]
        # Each end of the two-sided interval of level 1 - 2 alpha is a one-sided bound.
        least = np.array([clopper_pearson(int(k), n, 1 - 2 * alpha)[0] for k in hits])
        sure = least > 0.5
        radius = float(self.sigma) * ndtri(np.where(sure, least, 0.5))
        return Certificate(np.where(sure, label, ABSTAIN), radius, least)

    def predict(self, key: Key, x: Any, n: int = 100_000, alpha: float = 0.001) -> np.ndarray:
        """``[B]`` classes or ``ABSTAIN`` (Cohen et al. 2019, section 3.2.1, PREDICT).

        The most frequent class, unless a two-sided binomial test at ``alpha`` cannot tell it from
        the second. Arguments as for ``certify``.
        """
        _check_alpha(alpha)
        from scipy.special import bdtrc

        found = self.counts(fold_in_each(example_keys(key, np.shape(x)[0]), _ESTIMATE), x, n)
        second, first = np.sort(found, axis=-1)[:, -2:].T
        # Twice the upper tail of a fair coin; with no draws at all, or a tie, that is 1 or more.
        tail = np.where(first > 0, bdtrc(np.maximum(first, 1) - 1, first + second, 0.5), 1)
        return np.where(2 * tail <= alpha, found.argmax(-1), ABSTAIN)


@partial(jax.jit, static_argnames="draws")
def _count(
    smoothed: Smoothed, keys: Key, x: Array, total: Array, start: int, n: int, *, draws: int
) -> Array:
    """Adds draws ``start`` to ``start + draws``, those below ``n``, of a block of images."""
    numbers = start + jnp.arange(draws)
    each = jax.vmap(fold_in_each, (None, 0))(keys, numbers).reshape(-1)
    many = jnp.broadcast_to(x, (draws, *x.shape)).reshape(-1, *x.shape[1:])
    logits = smoothed(many, key=each)
    said = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=jnp.int32)
    finite = jnp.isfinite(logits).all(-1, keepdims=True)
    said = jnp.where(finite, said, 0).reshape(draws, *total.shape)
    return total + jnp.sum(jnp.where((numbers < n)[:, None, None], said, 0), axis=0)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise ValueError(f"Smoothed: given alpha={alpha}; expected a number between 0 and .5")
