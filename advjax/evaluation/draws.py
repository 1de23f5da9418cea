"""How often a randomised model is wrong: counted over fresh draws, with intervals."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.checks import check_batch
from advjax.evaluation.statistics import clopper_pearson
from advjax.types import as_model, example_keys, fold_in_each, is_stochastic

DRAWS = 100  # by default


class Shares(NamedTuple):
    """Of a randomised model's draws on each image the share that succeeds, ``[B]`` each.

    Attributes:
      share: in [0, 1].
      low: lower end of its Clopper-Pearson interval, in [0, 1].
      high: upper end.
    """

    share: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, hits: np.ndarray, draws: int, level: float) -> Shares:
        """From the numbers of successful draws ``[B]``."""
        ends = np.array([clopper_pearson(k, draws, level) for k in range(draws + 1)])
        return cls(hits / draws, ends[hits, 0], ends[hits, 1])


def wrong_draws(model: Any, x: jax.Array, y: jax.Array, keys: jax.Array, draws: int) -> jax.Array:
    """``[B]`` int32, how many of ``draws`` draws do not say ``y``; traceable, a draw at a time.

    Draw d of example i is that of ``fold_in(keys_i, d)``. Logits that are not finite say nothing.
    """

    def wrong(d: jax.Array) -> jax.Array:
        logits = model(x, key=fold_in_each(keys, d))
        right = jnp.isfinite(logits).all(axis=-1) & (jnp.argmax(logits, axis=-1) == y)
        return ~right

    return jnp.sum(jax.lax.map(wrong, jnp.arange(draws)), axis=0, dtype=jnp.int32)


_wrong_draws = jax.jit(wrong_draws, static_argnums=4)


def success_over_draws(
    key: jax.Array,
    model: Any,
    x_adv: Any,
    y: Any,
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    targeted: bool = False,
) -> Shares:
    """How often a randomised model misclassifies each image, over fresh draws, with an interval.

    The key must be new: the draws that an attack or a choice among images has seen favour what
    was chosen by them. ``evaluate`` counts like this for every attack.

    Args:
      key: one key, or ``[B]`` keys; consumed.
      model: ``stochastic = True``; see ``advjax.types.Model``.
      x_adv: ``[B, ...]`` float images in [0, 1], one batch of the model a draw.
      y: ``[B]`` integer labels, or targets.
      draws: how many.
      level: confidence of each image's interval.
      targeted: success is saying ``y``.

    Raises:
      TypeError: on wrong types or dtypes.
      ValueError: for a model that is not randomised, and on wrong shapes or ranges.
    """
    model = as_model(model)
    if not is_stochastic(model):
        raise ValueError(
            f"success_over_draws: given {type(model).__name__}, which is not randomised; "
            "a model with stochastic = True is taken"
        )
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws: given {draws!r}; an integer >= 1 is taken")
    x_adv, y = check_batch(model, x_adv, y)
    wrong = np.asarray(_wrong_draws(model, x_adv, y, example_keys(key, len(y)), draws))
    return Shares.of(draws - wrong if targeted else wrong, draws, level)
