"""One training step as a pure function, written for one device of a mapped axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from advjax.data import batch_indices, to_float
from advjax.training.apply import check_stats
from advjax.training.state import TrainState, moving_average
from advjax.types import Apply, Array, replace

AXIS = "batch"
_ORDER = np.uint32(0xFFFFFFFF)  # folded into the run's key; no step gets this far

Step = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    augment: Any = None,
    ema_decay: float | None = None,
) -> Step:
    """``step(state, positions, objective, x, y) -> (state, metrics)`` on one device of ``AXIS``.

    ``positions`` are the ``[b]`` places in the global batch that this device works on, ``x`` and
    ``y`` the whole training set as it lies on the device. Step s's batch is a pure function of the
    run's key and s; the draws of the example at place i come from
    ``fold_in(fold_in(key, s), i)``, those of its augmentation from place ``batch_size + i``.
    Gradients, metrics and float statistics are averaged over the axis, so the returned state is
    the same on every device.

    Metrics: ``loss``, the objective's own, and ``grad_norm`` (Euclidean, of the averaged
    gradient).
    """

    def step(
        state: TrainState, positions: Array, objective: Any, x: Array, y: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        order = jax.random.fold_in(state.key, _ORDER)
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        indices = batch_indices(order, state.step, x.shape[0], batch_size)[positions]
        images = to_float(x[indices])
        if augment is not None:
            images = augment(fold(key, batch_size + positions), images)
        batch = {"x": images, "y": y[indices]}
        if hasattr(objective, "at"):
            objective = objective.at(state.step)

        def loss_of(params: Any) -> Any:
            return objective(fold(key, positions), apply, params, state.stats, batch)

        (loss, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        check_stats(state.stats, aux.stats)
        grads, metrics = jax.lax.pmean((grads, {"loss": loss, **aux.metrics}), AXIS)
        stats = jax.tree.map(_mean_if_float, aux.stats)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = moving_average(ema, {"params": params, "stats": stats}, ema_decay, state.step)
        new = replace(
            state, step=state.step + 1, params=params, stats=stats, opt_state=opt_state, ema=ema
        )
        return new, {**metrics, "grad_norm": optax.tree.norm(grads)}

    return step


def _mean_if_float(value: Array) -> Array:
    return jax.lax.pmean(value, AXIS) if jnp.issubdtype(value.dtype, jnp.floating) else value
