"""A smooth flow field that moves the pixels until the model errs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from advjax.attacks._checks import (
    check_count,
    check_number,
    check_per_example,
    check_pictures,
    check_unbounded,
)
from advjax.attacks._closest import Closest
from advjax.attacks._iterate import Iterative, Judgement, Loop, auto_loop, judge, outcome
from advjax.attacks._rows import only, spread, vanished, widen
from advjax.attacks.spatial import bilinear, pixel_positions
from advjax.balls import L2, Ball
from advjax.losses import margin
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
    example_keys,
    fold_in_each,
    is_stochastic,
    pytree,
    replace,
    static,
)


def warp(x: Array, flow: Array) -> Array:
    """Images whose pixel at p is the original's at ``p + flow[p]`` (Xiao et al. 2018, eq. 1).

    Args:
      x: ``[B, H, W, C]``; its edge goes on outside.
      flow: ``[B, H, W, 2]``, rows and columns, in pixels.
    """
    rows, cols = pixel_positions(*x.shape[1:3])
    return jax.vmap(bilinear)(x, rows + flow[..., 0], cols + flow[..., 1])


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
class _State:
    """Between two steps: the flow, Adam's moments, the smoothest success and the tallies."""

    keys: Any  # [B] keys for a randomised model, else None
    taken: Array
    flow: Array
    adam: Any
    smoothest: Closest  # its distance is the flow's roughness
    spent: Array
    zero_gradient: Array
    probabilities: Array


@pytree
class Flow(Iterative):
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
      targeted: labels are targets; see ``Targeted``.
      loop: who iterates; ``auto_loop``, ``host_loop``, ``device_loop`` or your own.
    """

    ball: Ball = L2()  # noqa: RUF009
    max_shift: ArrayLike = jnp.inf
    tau: ArrayLike = 0.05
    kappa: ArrayLike = 0.0
    learning_rate: ArrayLike = 0.1
    steps: int = static(default=100)
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        check_unbounded("Flow", self.ball)
        check_count("Flow", "steps", self.steps, 0)
        for name in ("max_shift", "tau", "kappa", "learning_rate"):
            check_number("Flow", name, getattr(self, name), zero=True)

    def check_fits(self, x: Array) -> None:
        check_pictures("Flow", x)
        check_per_example(x, max_shift=self.max_shift)
        for name in ("tau", "kappa", "learning_rate"):
            shape = jnp.shape(getattr(self, name))
            if shape:
                raise ValueError(f"Flow: given {name} of shape {shape}; a scalar is taken")

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        flow = jnp.zeros_like(x, shape=(*x.shape[:3], 2))
        none = jnp.zeros_like(y)
        return _State(
            keys=example_keys(key, x.shape[0]) if is_stochastic(model) else None,
            taken=jnp.zeros((), jnp.int32),
            flow=flow,
            adam=optax.scale_by_adam().init(flow),
            smoothest=Closest.start(x),
            spent=none,
            zero_gradient=none,
            probabilities=none == 0,
        )

    def _judge(self, state: _State, model: Any, x: Array, y: Array) -> Judgement:
        keys: Any = None if state.keys is None else fold_in_each(state.keys, state.taken)
        return judge(margin, self.targeted, model, x, y, keys)[1]

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        def objective(flow: Array) -> tuple[Array, tuple[Array, Array, Judgement]]:
            image, rough = warp(x, flow), roughness(flow)
            judged = self._judge(state, model, image, y)
            value = jnp.maximum(-judged.loss, -self.kappa) + self.tau * rough
            return jnp.sum(value), (image, rough, judged)

        grad, (image, rough, judged) = jax.grad(objective, has_aux=True)(state.flow)
        grad = jnp.where(jnp.isfinite(grad), grad, 0)
        live = self.live(state)
        moved, adam = optax.scale_by_adam().update(grad, state.adam)
        moved = state.flow - self.learning_rate * moved
        limit = spread(self.max_shift, x)
        moved = jnp.clip(moved, -limit, limit)
        lost = vanished(grad)
        return replace(
            state,
            taken=state.taken + 1,
            flow=only(live, moved, state.flow),
            adam=only(live, adam, state.adam),
            smoothest=state.smoothest.keep(image, judged.success & live, rough, i),
            spent=state.spent + live,
            zero_gradient=state.zero_gradient + (lost & live),
            probabilities=state.probabilities & (judged.probabilities | ~live),
        )

    def live(self, state: _State) -> Array:
        return state.smoothest.distance > 0  # nothing is smoother than a success without a flow

    def finish(self, state: _State, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        last, live = warp(x, state.flow), self.live(state)
        judged = self._judge(state, model, last, y)
        smoothest = state.smoothest.keep(
            last, judged.success & live, roughness(state.flow), state.taken
        )
        keys: Any = None if state.keys is None else fold_in_each(state.keys, state.taken + 1)
        return outcome(
            self,
            model,
            x,
            y,
            jnp.where(widen(smoothest.found, x), smoothest.image, last),
            keys,
            record=record,
            loss=margin,
            forwards=state.spent + live,
            backwards=state.spent,
            first_success=smoothest.first_success,
            zero_gradient=state.zero_gradient,
        )

    def doubts(self, state: _State) -> Array:
        return state.probabilities

    def pieces(self) -> Flow:
        return replace(self, steps=0, loop=auto_loop)

    def scaled(self, factor: ArrayLike) -> Flow:
        limit = jnp.asarray(self.max_shift)
        return replace(self, max_shift=jnp.where(jnp.isinf(limit), limit, limit * factor))
