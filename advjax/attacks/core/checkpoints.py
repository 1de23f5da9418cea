"""Step sizes that are halved at checkpoints (Croce & Hein 2020, section 3)."""

from __future__ import annotations

import jax.numpy as jnp

from advjax.pytrees import Array, pytree, replace
from advjax.shapes import row


@pytree
class Checkpoints:
    """Auto-PGD's step sizes: halved at checkpoints, ever closer together, where a step is too long.

    Attributes:
      total: steps that the checkpoints are for, an int32 scalar as the next two.
      window: length of the current window between two checkpoints.
      checkpoint: the step that closes it.
      step_size: ``[B]``, in eps.
      rises: ``[B]`` int32, steps of this window that raised the loss.
      loss: ``[B]``, of the iterate before.
      loss_then: ``[B]`` best loss at the last checkpoint.
      shortened: ``[B]`` bool, whether the last checkpoint shortened the step.
    """

    total: Array
    window: Array
    checkpoint: Array
    step_size: Array
    rises: Array
    loss: Array
    loss_then: Array
    shortened: Array

    @classmethod
    def start(
        cls, x: Array, total: Array, *, window: Array | None = None, step_size: float = 2
    ) -> Checkpoints:
        """Before the first step of ``total``; the first window is 22 % of them by default."""
        zero = jnp.zeros_like(row(x))
        window = jnp.maximum(total * 22 // 100, 1) if window is None else window
        return cls(
            total=total,
            window=window,
            checkpoint=window,
            step_size=zero + step_size,
            rises=zero.astype(jnp.int32),
            loss=zero + jnp.inf,
            loss_then=zero - jnp.inf,
            shortened=zero == 0,
        )

    def see(self, loss: Array) -> Checkpoints:
        """With the loss ``[B]`` of the next iterate; the start counts as no rise."""
        return replace(self, rises=self.rises + (loss > self.loss).astype(jnp.int32), loss=loss)

    def update(self, i: Array, best_loss: Array, rho: float) -> tuple[Checkpoints, Array]:
        """At a checkpoint halves the steps that are too long.

        A step is too long where the loss rose in at most the share ``rho`` of the window's steps,
        or where the best loss stood still and the step was not shortened the last time.

        Args:
          i: the step to come.
          best_loss: ``[B]``, of all iterates so far.
          rho: 0 to 1.

        Returns:
          The next state, and ``[B]`` bool: whose step was halved and who goes on from the best.
        """
        due = i == self.checkpoint
        most = jnp.asarray(rho) * self.window.astype(jnp.float32)
        long = self.rises.astype(jnp.float32) <= most
        long |= ~self.shortened & (self.loss_then >= best_loss)
        less, least = jnp.maximum(self.total * 3 // 100, 1), jnp.maximum(self.total * 6 // 100, 1)
        window = jnp.where(due, jnp.maximum(self.window - less, least), self.window)
        after = replace(
            self,
            window=window,
            checkpoint=jnp.where(due, i + window, self.checkpoint),
            step_size=jnp.where(due & long, self.step_size / 2, self.step_size),
            rises=jnp.where(due, 0, self.rises),
            loss_then=jnp.where(due, best_loss, self.loss_then),
            shortened=jnp.where(due, long, self.shortened),
        )
        return after, due & long
