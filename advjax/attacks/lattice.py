"""Adversarial images that survive being stored with a limited number of levels."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import example_keys, fold_in_each
from advjax.arguments import check_count
from advjax.attacks.compose import EOT, Restarts, Targeted, Wrapper
from advjax.attacks.core.judging import Tally, ask, ask_with_gradient, outcome
from advjax.balls import Linf
from advjax.pytrees import Array, Key, pytree, replace, static, without_driver_fields
from advjax.shapes import vanished, widen
from advjax.types import Attack, Loop, Model, Record, auto_loop

_LATTICE = 2**32 - 2  # what keys are folded with here; no run of an attack uses it


@pytree
class Lattice(Wrapper):
    """An attack whose images have ``levels`` values: they pass through uint8 and PNG unchanged.

    The result of the attack is rounded in up to three ways inside ball and box: each pixel to the
    nearest level, along the sign of the loss's gradient, and towards the clean image, which never
    leaves the ball. The one that the model gets most wrong is kept, and judged again. ``Restarts``
    around it repairs more of what rounding loses; wrappers go around this one, not inside.

    A clean image should lie on the lattice, as one that was loaded from bytes does. Where it does
    not and no rounding lies in the ball, the clean image is returned as it is.

    Attributes:
      attack: an attack with a ball whose box has one lower and one upper value.
      levels: number of values from the box's lower to its upper bound, at least 2; 256 for uint8.
      repair: try the rounding along the gradient; without it, as for a model that has no
        gradient, the two others remain.
    """

    attack: Attack = dataclasses.field(kw_only=False)
    levels: int = static(default=256)
    repair: bool = static(default=True)

    def check(self) -> None:
        super().check()
        if self.attack.ball is None or isinstance(self.attack, Restarts | Targeted | EOT):
            raise TypeError(
                f"Lattice: given {self.attack!r}; expected an attack with a ball, and wrappers "
                "such as Restarts around it: Restarts(Lattice(attack))"
            )
        check_count("Lattice", "levels", self.levels, 2)
        ball = self.attack.ball
        if np.ndim(ball.lower) or np.ndim(ball.upper):
            raise ValueError(
                f"Lattice: given lower={ball.lower}, upper={ball.upper}; "
                "expected one value for all channels"
            )

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        keys = example_keys(key, x.shape[0])
        out = self.attack.solve(keys, model, x, y, record=record, loop=loop)
        return _settle(without_driver_fields(self), keys, model, x, y, out)


@jax.jit
def _settle(lattice: Lattice, keys: Key, model: Any, x: Array, y: Array, out: Record) -> Record:
    """The attack's record with its images put on the lattice."""
    keys = fold_in_each(keys, _LATTICE)
    goal, loss = lattice.goal, lattice.loss
    spent = int(lattice.repair)
    grad = jnp.zeros_like(x)
    if lattice.repair:
        drawn = fold_in_each(keys, 0)
        _, grad = ask_with_gradient(goal, loss, model, out.x_adv, y, drawn)
    images, fits = _roundings(lattice, x, out.x_adv, grad)
    count = len(images)
    together = lambda parts: jnp.stack(parts, axis=1)
    apart = lambda values: values.reshape(-1, count)
    tried: Any = together(images).reshape(-1, *x.shape[1:])
    drawn = together([fold_in_each(keys, 1 + n) for n in range(count)]).reshape(-1)
    _, judged = ask(goal, loss, model, tried, jnp.repeat(y, count), drawn)
    # Among those in the ball a success, if there is one, then by loss; of equals the first.
    fit = together(fits)
    success = fit & apart(judged.success)
    among = jnp.where(jnp.any(success, axis=1, keepdims=True), success, fit)
    value = jnp.nan_to_num(apart(judged.loss), nan=jnp.finfo(x.dtype).min)
    best = jnp.argmax(jnp.where(among, value, -jnp.inf), axis=1)
    x_adv = x
    for n, image in enumerate(images):
        x_adv = jnp.where(widen((best == n) & fits[n], x), image, x_adv)
    if out.success is None:
        return replace(out, x_adv=x_adv)
    tally = Tally(
        forwards=out.forwards + spent + count,
        backwards=out.backwards + spent,
        first_success=out.first_success,
        zero_gradient=out.zero_gradient + jnp.where(vanished(grad), spent, 0),
        probabilities=None,
    )
    drawn = fold_in_each(keys, 1 + count)
    final = outcome(lattice, model, x, y, x_adv, drawn, record=True, loss=loss, tally=tally)
    first = jnp.where(final.success, final.first_success, -1)
    return replace(final, first_success=first)


def _roundings(
    lattice: Lattice, x: Array, x_adv: Array, grad: Array
) -> tuple[list[Array], list[Array]]:
    """Images on the lattice beside ``x_adv``, and whether each lies in the ball, ``[B]``."""
    ball, top = lattice.ball, lattice.levels - 1
    assert ball is not None  # check() made sure
    lower, upper = (float(bound) for bound in ball.bounds)  # one value each: check() made sure
    span = upper - lower
    # A table, since a compiled division is off by an ulp from what a PNG's reader computes.
    table = jnp.asarray(np.arange(top + 1, dtype=np.float32) / np.float32(top) * span + lower)
    place = (x_adv - lower) / span * top
    nearest = jnp.clip(jnp.round(place), 0, top)
    # A value that is on the lattice but for float rounding has no level below or above it.
    exact = jnp.abs(place - nearest) < 1e-3
    low = jnp.where(exact, nearest, jnp.clip(jnp.floor(place), 0, top))
    high = jnp.where(exact, nearest, jnp.clip(jnp.ceil(place), 0, top))
    level = lambda index: table[index.astype(jnp.int32)]
    toward = jnp.where(x_adv > x, level(low), jnp.where(x_adv < x, level(high), level(nearest)))
    # Between the clean image's own neighbours the nearer of the two is nearest to it.
    between = (level(low) <= x) & (x <= level(high))
    own = level(jnp.clip(jnp.round((x - lower) / span * top), 0, top))
    toward = jnp.where(between, own, toward)
    toward = jnp.where(x_adv == x, own, toward)
    images = [level(nearest)]
    if lattice.repair:
        uphill = jnp.where(grad > 0, level(high), level(low))
        images.append(jnp.where(grad != 0, uphill, level(nearest)))
    eps = jnp.asarray(ball.eps, x.dtype)
    limit = eps * (1 + 1e-6) + 1e-6  # what float rounding adds to an image at the ball's edge
    if isinstance(ball, Linf):
        allowed = widen(jnp.broadcast_to(limit, x.shape[:1]), x)
        images = [jnp.where(jnp.abs(image - x) <= allowed, image, toward) for image in images]
    # A clean value that is on the lattice but for float rounding stays what it is.
    still = jnp.abs(own - x) < 1e-3 * span / top
    keep = lambda image: jnp.where(still & (image == own), x, image)
    images, toward = [keep(image) for image in images], keep(toward)
    images = [ball.on_mask(image, x) for image in [*images, toward]]
    return images, [ball.size(image - x) <= limit for image in images]
