"""One training step as a pure function, written for one device of a mapped axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from advjax.data import batch_indices, to_float
from advjax.training.apply import check_stats
from advjax.training.state import TrainState
from advjax.types import Apply, Array, Key, replace

AXIS = "batch"
# Folded into the run's key for the orders of the two image streams; no step gets this far.
_ORDER, _UNLABELLED_ORDER = np.uint32(0xFFFFFFFF), np.uint32(0xFFFFFFFE)

Step = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    augment: Any = None,
    average: Callable[[Any, Any, Array], Any] | None = None,
    unlabelled_ratio: int = 1,
) -> Step:
    """``step(state, positions, objective, x, y, streams) -> (state, metrics)`` on one device.

    ``positions`` are the ``[b]`` places in the global batch that this device works on, ``x`` and
    ``y`` the whole training set as it lies on the device, ``streams`` what ``Training.streams``
    returns. Step s's batch is a pure function of the run's key and s; the draws of the example at
    place i come from ``fold_in(fold_in(key, s), i)``, those of its augmentation from place
    ``batch_size + i``. Gradients, metrics and float statistics are averaged over the axis, so the
    returned state is the same on every device, but for the carry, of which each has its places.

    An objective with ``replays`` (m) gets every minibatch m times in a row, augmented alike. One
    with ``start`` has a carry: it is ``batch["carry"]``, and ``advance(carry, gradient)`` makes the
    next one, with the gradient of the loss summed over the examples.

    Metrics: ``loss``, the objective's own, and ``grad_norm`` (Euclidean, of the averaged
    gradient).
    """
    if getattr(apply, "axis_name", None) is None:
        apply = _OnAxis(apply)

    def step(
        state: TrainState,
        positions: Array,
        objective: Any,
        x: Array,
        y: Array,
        streams: Mapping[str, Array] | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        replays = replays_of(objective)
        turn = state.step if replays == 1 else state.step // replays
        drawn = key if replays == 1 else jax.random.fold_in(state.key, turn)
        order = jax.random.fold_in(state.key, _ORDER)
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        indices = batch_indices(order, turn, x.shape[0], batch_size)[positions]
        images = to_float(x[indices])
        if augment is not None:
            images = augment(fold(drawn, batch_size + positions), images)
        batch = {"x": images, "y": y[indices]}
        if streams and "unlabelled" in streams:
            pool, size = streams["unlabelled"], unlabelled_ratio * batch_size
            order = jax.random.fold_in(state.key, _UNLABELLED_ORDER)
            places = (unlabelled_ratio * positions[:, None] + np.arange(unlabelled_ratio)).ravel()
            images = to_float(pool[batch_indices(order, turn, pool.shape[0], size)[places]])
            if augment is not None:
                images = augment(fold(drawn, 2 * batch_size + places), images)
            batch["unlabelled"] = images
        if streams and "neighbours" in streams:
            # A row's absent neighbours have weight 0; which image stands there does not matter.
            index, n = streams["neighbours"][indices], x.shape[0]
            images = to_float(x[jnp.minimum(index, n - 1)])
            if "unlabelled" in streams:
                further = to_float(streams["unlabelled"][jnp.maximum(index - n, 0)])
                here = index.reshape(index.shape + (1,) * (x.ndim - 1)) < n
                images = jnp.where(here, images, further)
            batch["neighbours"], batch["weights"] = images, streams["weights"][indices]
        if hasattr(objective, "at"):
            objective = objective.at(state.step)

        def loss_of(params: Any, carry: Any) -> Any:
            given = batch if carry is None else {**batch, "carry": carry}
            return objective(fold(key, positions), apply, params, state.stats, given)

        (loss, aux), (grads, ascent) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(
            state.params, state.carry
        )
        check_stats(state.stats, aux.stats)
        grads, metrics = jax.lax.pmean((grads, {"loss": loss, **aux.metrics}), AXIS)
        stats = jax.tree.map(_mean_if_float, aux.stats)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema, carry = state.ema, state.carry
        if average is not None:
            ema = average(ema, {"params": params, "stats": stats}, state.step)
        if carry is not None:
            # The loss is the mean over this device's examples.
            carry = objective.advance(carry, jax.tree.map(lambda g: g * len(positions), ascent))
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


def replays_of(objective: Any) -> int:
    """How many steps in a row an objective wants the same minibatch for."""
    return getattr(objective, "replays", 1)


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
