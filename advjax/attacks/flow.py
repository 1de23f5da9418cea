"""A smooth flow field that moves the pixels until the model errs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from advjax.answers import fold_if_any
from advjax.arguments import check_count, check_number, check_pictures, check_unbounded
from advjax.attacks.core.judging import Judgement, ask
from advjax.attacks.core.minimal import KeepsClosest, SearchState
from advjax.attacks.core.penalty import Adam
from advjax.attacks.spatial import bilinear, pixel_positions
from advjax.balls import L2, Ball
from advjax.goals import Misclassify
from advjax.losses import margin
from advjax.pytrees import Array, ArrayLike, Key, driver_only, per_example, pytree, replace
from advjax.shapes import only, spread, vanished, widen
from advjax.types import Goal, Model


def warp(x: Array, flow: Array) -> Array:
    """Images whose pixel at p is the original's at ``p + flow[p]`` (Xiao et al. 2018, eq. 1).

    Args:
      x: ``[B, H, W, C]``; its edge goes on outside.
      flow: ``[B, H, W, 2]``, rows and columns, in pixels.
    """
    rows, cols = pixel_positions(*x.shape[1:3])
    return jax.vmap(bilinear)(x, rows[None] + flow[..., 0], cols[None] + flow[..., 1])


def roughness(flow: Array) -> Array:
    """The flow's total variation ``[B]``: over all pixels and their 4 neighbours, the Euclidean
    length of the difference of the two displacements (Xiao et al. 2018, eq. 4)."""

    def along(step: Array) -> Array:
        square = jnp.sum(step**2, axis=-1)
        some = square > 0  # the root's slope at zero is infinite
        return jnp.sum(jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0), axis=(1, 2))

    # Every pair of neighbours counts twice, once from either pixel.
    return 2 * (along(jnp.diff(flow, axis=1)) + along(jnp.diff(flow, axis=2)))


@pytree
class _State(SearchState):
    """Between two steps; ``closest`` is the smoothest success, its distance the roughness."""

    flow: Array
    adam: Adam


@pytree
class Flow(KeepsClosest):
    """Spatially transformed examples, stAdv (Xiao et al. 2018, section 3.2, eq. 1 to 4).

    Minimises ``max(label's logit - largest other, -kappa) + tau * roughness(flow)`` over a
    displacement of every pixel, from zero, and keeps the smoothest flow that fools the model; the
    last one where none does. The paper minimises with L-BFGS; this is Adam, whose steps need no
    line search and so cost every image the same.

    Attributes:
      ball: its box bounds the images and its norm measures them; it takes no eps and no mask.
      max_shift: largest displacement along either axis in pixels, scalar or ``[B]``; infinite by
        default, which ``scaled`` leaves infinite.
      tau: weight of the roughness, the paper's 0.05 by default. It is weighed against logits: for
        a model of small ones take less, or the smoothest that works of several by
        ``WorstOf((Flow(), Flow(tau=0.005), Flow(tau=0)))``.
      kappa: logit margin the attack works for; 0 is to err at all.
      learning_rate: Adam's, pixels of displacement.
      steps: number of steps, at least 0.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball = L2()  # noqa: RUF009
    max_shift: ArrayLike = per_example(default=jnp.inf)
    tau: ArrayLike = 0.05
    kappa: ArrayLike = 0.0
    learning_rate: ArrayLike = 0.1
    steps: int = driver_only(default=100)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_unbounded("Flow", self.ball)
        check_count("Flow", "steps", self.steps, 0)
        for name in ("max_shift", "tau", "kappa", "learning_rate"):
            check_number("Flow", name, getattr(self, name), zero=True)

    def check_fits(self, x: Array) -> None:
        check_pictures("Flow", x)
        super().check_fits(x)
        for name in ("tau", "kappa", "learning_rate"):
            shape = jnp.shape(getattr(self, name))
            if shape:
                raise ValueError(f"Flow: given {name} of shape {shape}; expected a scalar")

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        del y
        flow = jnp.zeros_like(x, shape=(*x.shape[:3], 2))
        return _State.start(key, model, x, steps, flow=flow, adam=Adam.start(flow))

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        def objective(flow: Array) -> tuple[Array, tuple[Array, Array, Judgement]]:
            image, rough = warp(x, flow), roughness(flow)
            _, judged = ask(self.goal, margin, model, image, y, fold_if_any(state.keys, i))
            value = jnp.maximum(-judged.loss, -self.kappa) + self.tau * rough
            return jnp.sum(value), (image, rough, judged)

        grad, (image, rough, judged) = jax.grad(objective, has_aux=True)(state.flow)
        grad = jnp.where(jnp.isfinite(grad), grad, 0)
        live = self.live(state)
        moved, adam = state.adam.step(grad)
        moved = state.flow - self.learning_rate * moved
        limit = spread(self.max_shift, x)
        moved = jnp.clip(moved, -limit, limit)
        tally = state.tally.spend(backwards=live).lose(vanished(grad) & live)
        return replace(
            self._keep(i, replace(state, tally=tally), judged, image, rough),
            flow=only(live, moved, state.flow),
            adam=only(live, adam, state.adam),
        )

    def _keep(
        self, i: ArrayLike, state: _State, judged: Judgement, image: Array, rough: Array
    ) -> _State:
        """The state after these images of those that are live have been judged."""
        live = self.live(state)
        return replace(
            state,
            closest=state.closest.keep(image, judged.success & live, rough),
            tally=state.tally.spend(forwards=live).see(judged, i, live),
        )

    def live(self, state: _State) -> Array:
        return state.closest.distance > 0  # nothing is smoother than a success without a flow

    def last(self, state: _State, model: Model, x: Array, y: Array) -> _State:
        image, i = warp(x, state.flow), state.steps.astype(jnp.int32)
        _, judged = ask(self.goal, margin, model, image, y, fold_if_any(state.keys, i))
        return self._keep(i, state, judged, image, roughness(state.flow))

    def result(self, state: _State, x: Array) -> Array:
        found = widen(state.closest.found, x)
        return jnp.where(found, state.closest.image, warp(x, state.flow))

    def scaled(self, factor: ArrayLike) -> Flow:
        limit = jnp.asarray(self.max_shift)
        return replace(self, max_shift=jnp.where(jnp.isinf(limit), limit, limit * factor))
