"""What a black-box attack may see of a model: its scores, or its classes and nothing else.

A black-box attack wraps the model before it looks at anything. What the oracle hides cannot leak
into the attack by mistake: a gradient through either is zero, and a class has no logits. Models
that JAX cannot differentiate (a ``pure_callback``) are never asked to be differentiated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import answer_of, as_model, draws_of, is_stochastic
from advjax.attacks.core.judging import judge
from advjax.losses import margin
from advjax.pytrees import Array, Key, pytree
from advjax.types import Goal


@pytree
class _Oracle:
    """What wraps a model and passes on whether it is randomised."""

    model: Any = dataclasses.field(kw_only=False)

    def check(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))

    @property
    def stochastic(self) -> bool:
        return is_stochastic(self.model)


@pytree
class Scores(_Oracle):
    """A model that tells its logits and no gradient; itself a model.

    ``Scores(model)(x) -> [B, K]``. A randomised model stays one and wants ``key=``.
    """

    def __call__(self, x: Array, *, key: Key | None = None) -> Array:
        return _logits(self.model, x, key)


@pytree
class Labels(_Oracle):
    """A model that tells its class and nothing else.

    ``Labels(model)(x) -> [B]`` int32; ``[S, B]`` where a randomised model answers in S draws.
    """

    def __call__(self, x: Array, *, key: Key | None = None) -> Array:
        return jnp.argmax(_logits(self.model, x, key), axis=-1).astype(jnp.int32)

    def adversarial(self, x: Array, y: Array, *, goal: Goal, key: Key | None = None) -> Array:
        """``[B]`` bool: more than half of the answers, all of them finite, reach the goal."""
        return judge(goal, margin, draws_of(Scores(self.model), x, key), y).success


def _logits(model: Any, x: Array, key: Key | None) -> Array:
    # On the way in, so that differentiating through the attack never reaches the model.
    model, x = jax.lax.stop_gradient((model, x))
    return jax.lax.stop_gradient(answer_of(model, x, key))
