"""The sigma-zero attack: the fewest changed features, by a smooth count and a moving threshold."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from advjax.arguments import check_ball, check_count, check_number
from advjax.attacks.core.minimal import MinimumNorm, SearchState
from advjax.attacks.core.penalty import Adam
from advjax.balls import L0, Ball
from advjax.goals import Misclassify
from advjax.pytrees import Array, ArrayLike, Key, driver_only, pytree, replace
from advjax.shapes import row, vanished, widen
from advjax.types import Goal, Model


@pytree
class _State(SearchState):
    x_adv: Array
    adam: Adam
    threshold: Array


@pytree
class SigmaZero(MinimumNorm):
    """Sigma-zero (Cina et al. 2025, algorithm 1): minimum L0.

    Adam lowers ``max(-margin, 0) + mean(delta^2 / (delta^2 + sigma))``, whose second term is a
    smooth share of changed features; the gradient is divided by its largest entry. After each step
    changes below a threshold are undone. The threshold rises by ``threshold_rate`` times the step
    size where the image was adversarial and falls by it where not.

    Attributes:
      ball: an ``L0`` ball: its box and mask, and the largest count that counts as a success.
      steps: number of steps, at least 0; each costs a forward and a backward pass.
      step_size: Adam's first step size, pixel units; decays to a tenth along a cosine.
      sigma: width of the smooth count, squared pixel units, above 0.
      threshold: the first threshold, pixel units, at least 0.
      threshold_rate: change of the threshold per step size.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball = L0()
    steps: int = driver_only(default=1000)
    step_size: ArrayLike = 1.0
    sigma: ArrayLike = 1e-3
    threshold: ArrayLike = 0.3
    threshold_rate: ArrayLike = 0.01
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("SigmaZero", self.ball, L0, expected="an L0 ball")
        check_count("SigmaZero", "steps", self.steps, 0)
        check_number("SigmaZero", "sigma", self.sigma)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        del y
        threshold = jnp.broadcast_to(self.threshold, row(x).shape).astype(x.dtype)
        return _State.start(key, model, x, steps, x_adv=x, adam=Adam.start(x), threshold=threshold)

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        judged, grad = self._look(i, state, model, y)
        short, delta = judged.loss <= 0, state.x_adv - x
        lost = short & vanished(grad)

        sigma, features = jnp.asarray(self.sigma), x.size // x.shape[0]
        count_slope = 2 * sigma * delta / (delta**2 + sigma) ** 2 / features
        grad = self.ball.steepest(jnp.where(widen(short, x), -grad, 0) + count_slope)
        direction, adam = state.adam.step(grad)
        x_adv = self.ball.clip(x + delta - self._step_size(i, state) * direction)
        change = jnp.where(judged.success, 1, -1) * jnp.asarray(self.threshold_rate)
        threshold = state.threshold + change * self._step_size(i + 1, state)
        lower, upper = self.bounds
        threshold = jnp.clip(threshold, 0, np.max(upper - lower))
        kept = jnp.abs(x_adv - x) >= widen(threshold, x)
        return replace(
            self._seen(i, state, judged, lost, x),
            x_adv=jnp.where(kept, x_adv, x),
            adam=adam,
            threshold=threshold,
        )

    def _step_size(self, i: Array, state: _State) -> Array:
        return jnp.asarray(self.step_size) * (0.1 + 0.9 * self._cosine(i, state))
