"""How often a randomised model is wrong: counted over fresh draws, with intervals."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import as_model, draws_of, example_keys, fold_in_each, is_stochastic
from advjax.attacks.core.judging import judge
from advjax.checks import check_batch
from advjax.evaluation.statistics import clopper_pearson
from advjax.goals import Misclassify
from advjax.losses import margin
from advjax.pytrees import Array, Key
from advjax.types import Goal, Model

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


def draws_that_reach(goal: Goal, model: Model, x: Array, y: Array, keys: Key, draws: int) -> Array:
    """``[B]`` int32, how many of ``draws`` draws reach the goal; traceable, a draw at a time.

    Draw d of example i is that of ``fold_in(keys_i, d)``. Logits that are not finite reach nothing.
    """

    def reached(d: Array) -> Array:
        return judge(goal, margin, draws_of(model, x, fold_in_each(keys, d)), y).success

    return jnp.sum(jax.lax.map(reached, jnp.arange(draws)), axis=0, dtype=jnp.int32)


_draws_that_reach = jax.jit(draws_that_reach, static_argnums=5)


def success_over_draws(
    key: jax.Array,
    model: Any,
    x_adv: Any,
    y: Any,
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    goal: Goal = Misclassify(),  # noqa: B008 - frozen
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
      goal: what counts as success; ``Target()`` where ``y`` are targets.

    Raises:
      TypeError: on wrong types or dtypes.
      ValueError: for a model that is not randomised, and on wrong shapes or ranges.
    """
    model = as_model(model)
    if not is_stochastic(model):
        raise ValueError(
            f"success_over_draws: given {type(model).__name__}, which is not randomised; "
            "expected a model with stochastic = True"
        )
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws: given {draws!r}; expected an integer >= 1")
    x_adv, y = check_batch(model, x_adv, y)
    keys = example_keys(key, len(y))
    hits = np.asarray(_draws_that_reach(goal, model, x_adv, y, keys, draws))
    return Shares.of(hits, draws, level)
