"""One training step as a pure function, written for one device of a mapped axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from advjax.data.streams import Batches
from advjax.pytrees import Array, Key, replace
from advjax.runs.state import Average, TrainState
from advjax.training.apply import check_stats
from advjax.types import Apply, Objective, axis_of

AXIS = "batch"
Step = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    batches: Batches,
    average: Average | None = None,
) -> Step:
    """``step(state, places, objective, data) -> (state, metrics)`` on one device.

    ``places`` are the ``[b]`` places in the global batch that this device works on, ``data`` the
    arrays of ``Streams.arrays`` as they lie on the device. Step s's batch is
    ``batches(key, s, data, places)`` with the run's key; the draws of the example at place i come
    from ``fold_in(fold_in(key, s), i)``. Gradients, metrics and float statistics are averaged over
    the axis, so the returned state is the same on every device, but for the carry, of which each
    has its places.

    An objective with ``replays`` (m) gets every minibatch m times in a row, augmented alike. One
    that carries finds its carry in ``batch["carry"]``, and ``advance(carry, gradient)`` makes the
    next one, with the gradient of the loss summed over the examples.

    Metrics: ``loss``, the objective's own, and ``grad_norm`` (Euclidean, of the averaged
    gradient).
    """
    if axis_of(apply) is None:
        apply = _OnAxis(apply)

    def step(
        state: TrainState, places: Array, objective: Objective, data: Mapping[str, Array]
    ) -> tuple[TrainState, dict[str, Array]]:
        keys = jax.random.fold_in(state.key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, places)
        batch = batches(state.key, state.step // objective.replays, data, places)
        objective = objective.at(state.step)

        def loss_of(params: Any, carry: Any) -> Any:
            given = batch if carry is None else {**batch, "carry": carry}
            return objective(keys, apply, params, state.stats, given)

        (loss, aux), (grads, ascent) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(
            state.params, state.carry
        )
        check_stats(state.stats, aux.stats)
        grads, metrics = jax.lax.pmean((grads, {"loss": loss, **aux.metrics}), AXIS)
        stats = jax.tree.map(_mean_if_float, aux.stats)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema, carry = state.ema, state.carry
        if average is not None:
            ema = average(ema, {"params": params, "stats": stats}, state.step)
        if carry is not None:
            # The loss is the mean over this device's examples.
            carry = objective.advance(carry, jax.tree.map(lambda g: g * len(places), ascent))
        new = replace(
            state,
            step=state.step + 1,
            params=params,
            stats=stats,
            opt_state=opt_state,
            ema=ema,
            carry=carry,
        )
        return new, {**metrics, "grad_norm": optax.tree.norm(grads)}

    return step


@dataclasses.dataclass(frozen=True)
class _OnAxis:
    """A user's ``Apply`` that says which axis its batch is split over, for what needs the whole."""

    apply: Apply
    axis_name: str = AXIS

    def __call__(
        self, params: Any, stats: Any, x: Array, *, key: Key | None = None, train: bool = False
    ) -> tuple[Array, Any]:
        return self.apply(params, stats, x, key=key, train=train)


def _mean_if_float(value: Array) -> Array:
    return jax.lax.pmean(value, AXIS) if jnp.issubdtype(value.dtype, jnp.floating) else value
