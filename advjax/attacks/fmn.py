"""The fast minimum-norm attack: the smallest perturbation in L0, L1, L2 or L-inf."""

from __future__ import annotations

import jax.numpy as jnp

from advjax.arguments import check_count, check_number, check_share
from advjax.attacks.core.minimal import MinimumNorm, SearchState, farthest
from advjax.balls import L0, L1, L2, Ball, Linf
from advjax.goals import Misclassify
from advjax.pytrees import Array, ArrayLike, Key, driver_only, pytree, replace
from advjax.shapes import row, vanished, widen
from advjax.types import Goal, Model

_FAR = 1e4  # pixel units: so far that only ball and box decide where a projection lands
# In whose norm a gradient bounds how fast the margin changes along a perturbation.
_DUAL: dict[type[Ball], Ball] = {Linf: L1(), L2: L2(), L1: Linf()}


@pytree
class _State(SearchState):
    x_adv: Array
    radius: Array
    farthest: Array  # distance of the farthest corner of the box


@pytree
class FMN(MinimumNorm):
    """Fast minimum-norm attack (Pintor et al. 2021, algorithm 1) in L0, L1, L2 or L-inf.

    Each step raises the margin along the L2-normalised gradient inside the ball of the current
    radius and the box. Until an adversarial image is found, the radius is where the linearised
    margin crosses zero; then it shrinks by ``gamma`` where the image was adversarial and grows by
    it where not. In L0 it is a count from the start and changes by at least one.

    An image that ``patience`` steps have not found jumps from then on, until it is found: as far as
    ball and box allow, along the gradient alone and along gradient plus perturbation in turn. The
    published short steps stay in the flat surroundings that adversarial training makes: on 100
    MNIST images and such a network they find 53 % in L2 and L-inf, with the jumps all are found.

    Attributes:
      ball: the norm, the box and the mask, and the largest distance that counts as a success.
      steps: number of steps, at least 0; each costs a forward and a backward pass.
      step_size: L2 length of the first step, pixel units; decays to a hundredth along a cosine. In
        L0 a longer one (10) finds fewer features where gradients can be relied on, and more of them
        on an adversarially trained network.
      gamma: first relative change of the radius, above 0 and below 1; decays along a cosine.
      gamma_final: its last value.
      patience: published steps an image gets before it jumps, at least 0; ``steps`` or more for
        the published algorithm.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball
    steps: int = driver_only(default=100)
    step_size: ArrayLike = 1.0
    gamma: ArrayLike = 0.05
    gamma_final: ArrayLike = 0.001
    patience: ArrayLike = 5
    goal: Goal = Misclassify()

    def check(self) -> None:
        if not isinstance(self.ball, L0) and type(self.ball) not in _DUAL:
            raise TypeError(f"FMN: given ball={self.ball!r}; expected Linf, L2, L1 or L0")
        check_count("FMN", "steps", self.steps, 0)
        check_number("FMN", "patience", self.patience, zero=True)
        check_share("FMN", "gamma", self.gamma)
        check_share("FMN", "gamma_final", self.gamma_final)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        del y
        radius = jnp.full_like(row(x), 1.0 if isinstance(self.ball, L0) else jnp.inf)
        far = farthest(self.ball, x)
        return _State.start(key, model, x, steps, x_adv=x, radius=radius, farthest=far)

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        judged, grad = self._look(i, state, model, y)
        grad = self.ball.on_mask(grad)
        lost, delta = vanished(grad), state.x_adv - x
        seen = self._seen(i, state, judged, lost, x)

        cosine = self._cosine(i, state)
        gamma = self.gamma_final + (jnp.asarray(self.gamma) - self.gamma_final) * cosine
        step_size = jnp.asarray(self.step_size) * (0.01 + 0.99 * cosine)
        if isinstance(self.ball, L0):
            radius = _next_count(state.radius, judged.success, seen.closest.distance, gamma)
        else:
            shrunk = jnp.minimum(state.radius * (1 - gamma), seen.closest.distance)
            slope = _DUAL[type(self.ball)].size(grad)
            ahead = jnp.abs(judged.loss) / jnp.where(slope > 0, slope, 1)
            # A little beyond the crossing: in a linear region the steps else end on the tie.
            estimate = (self.ball.size(delta) + ahead) * (1 + jnp.asarray(self.gamma_final))
            estimate = jnp.where(slope > 0, estimate, jnp.inf)
            grown = jnp.where(seen.closest.found, state.radius * (1 + gamma), estimate)
            radius = jnp.where(judged.success, shrunk, grown)
        radius = jnp.minimum(radius, state.farthest)
        moved = delta + step_size * L2().steepest(grad)

        waited = jnp.asarray(i, jnp.float32) - jnp.asarray(self.patience)
        jump = ~seen.closest.found & ~lost & (waited >= 0)
        afresh = jump & (waited % 2 == 0)
        moved = jnp.where(widen(afresh, x), moved - delta, moved)
        moved = jnp.where(widen(jump, x), _FAR * moved, moved)

        return replace(
            seen,
            x_adv=replace(self.ball, eps=radius).apply(x, moved),
            radius=radius,
        )


def _next_count(count: Array, success: Array, smallest: Array, gamma: Array) -> Array:
    """How many features may change next: fewer where the last image was adversarial."""
    fewer = jnp.minimum(jnp.minimum(count - 1, jnp.floor(count * (1 - gamma))), smallest)
    more = jnp.maximum(count + 1, jnp.floor(count * (1 + gamma)))
    return jnp.maximum(jnp.where(success, fewer, more), 0)
