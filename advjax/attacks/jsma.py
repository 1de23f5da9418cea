"""The Jacobian saliency map attack, with an exact search for pairs that never holds all pairs."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import draws_of, example_keys, fold_if_any, is_stochastic
from advjax.arguments import check_ball, check_count, check_goal, check_number
from advjax.attacks.core.boundaries import of_rank
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Tally, judge
from advjax.attacks.core.wrap import Wrapper
from advjax.balls import L0, concrete
from advjax.checks import is_traced
from advjax.goals import Misclassify, Target, Undetected
from advjax.losses import margin
from advjax.pytrees import Array, ArrayLike, Key, driver_only, per_example, pytree, replace, static
from advjax.shapes import widen
from advjax.types import Attack, Goal, Loop, LossFn, Model, Record, auto_loop

_UPSILON = 0.145  # the paper's: 112 of MNIST's 784 features


def _product(gain: Array, fall: Array) -> Array:
    """The product where both are positive; else -1, or -2 where ``fall`` is not positive."""
    useful = (gain > 0) & (fall > 0)
    return jnp.where(useful, gain * fall, jnp.where(fall > 0, -1.0, -2.0))


def best_pair(gain: Array, fall: Array, free: Array) -> tuple[Array, Array, Array]:
    """The two features p, q with the largest ``(gain_p + gain_q) * (fall_p + fall_q)``.

    Both sums must be positive. Exact, up to the rounding of the products, in time ``D ** 1.5`` and
    memory ``D``, with the same passes whatever the values.

    Let d be the feature with the largest product of its own; its pairs are all looked at. Of the
    others only those matter that no other beats in both gain and fall: a partner of two that are
    beaten by the same feature is no better than that feature's pair with d. Sorted by falling gain
    (so by rising fall) they make a matrix of products in which a later row never has its largest
    entry further right. So the largest entries of every R-th row bound where the rows between can
    have theirs, and what is left to look at is R entries in each column.

    Args:
      gain: ``[B, D]`` how much changing a feature raises the target.
      fall: ``[B, D]`` how much it lowers the others.
      free: ``[B, D]`` bool, the features to choose from.

    Returns:
      p ``[B]``, q ``[B]`` and whether there is such a pair, ``[B]``.
    """
    batch, features = gain.shape
    unit = lambda v: (
        v / jnp.maximum(jnp.max(jnp.where(free, jnp.abs(v), 0), 1, keepdims=True), 1e-37)
    )
    gain, fall = (jnp.where(free, unit(v), -jnp.inf) for v in (gain, fall))
    at = functools.partial(jnp.take_along_axis, axis=1, mode="promise_in_bounds")
    single = jnp.argmax(_product(gain, fall), axis=1, keepdims=True).astype(jnp.int32)
    rows = round(math.sqrt(features)) or 1
    blocks = -(-features // rows)
    # The front of all but the single best, every position a copy of its front feature.
    position = jax.lax.broadcasted_iota(jnp.int32, gain.shape, 1)
    others = jnp.where(position == single, -jnp.inf, gain)
    sorted_gain, sorted_fall, order = jax.lax.sort((-others, fall, position), num_keys=1)
    top = jax.lax.cummax(sorted_fall, axis=1)
    leader = jax.lax.cummax(jnp.where(sorted_fall >= top, position, 0), axis=1)
    pad = lambda v: jnp.pad(v, ((0, 0), (0, rows * blocks - features)), mode="edge")
    up, down, feature = (pad(at(v, leader)) for v in (-sorted_gain, sorted_fall, order))

    end = rows * blocks - 1
    columns = jax.lax.broadcasted_iota(jnp.int32, up.shape, 1)

    def look(k: Any, seen: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Row k * rows with every column; then, by symmetry, the column of its largest entry."""
        largest, bound, on_bound = seen
        products = lambda i: _product(up + at(up, i), down + at(down, i))
        sampled = jnp.full_like(single, k * rows)
        row = products(sampled)
        most = jnp.max(row, axis=1, keepdims=True)
        where = jnp.min(jnp.where(row == most, columns, end), axis=1, keepdims=True)
        # A row that no column helps is past the end.
        where = jnp.where(at(down, sampled) + down[:, -1:] > 0, where, end)
        column = jnp.max(products(where), axis=1, keepdims=True)
        put = lambda seen, new: jax.lax.dynamic_update_slice_in_dim(seen, new, k, axis=1)
        return put(largest, most), put(bound, where), put(on_bound, column)

    none = up[:, :blocks]
    largest, bound, on_bound = jax.lax.fori_loop(0, blocks, look, (none, columns[:, :blocks], none))
    # Column j belongs to the rows after the last sampled one whose bound is right of it.
    falling = jax.lax.cummin(bound, axis=1)  # they fall by themselves, but for rounding
    count = jax.vmap(lambda none, where: none.at[where].add(1))(jnp.zeros_like(columns), falling)
    right_of = jnp.cumsum(count[:, ::-1], axis=1)[:, ::-1] - count
    first = jnp.maximum(right_of - 1, 0) * rows

    def between(r: Any, best: Array) -> Array:
        return jnp.maximum(best, _product(up + at(up, first + r), down + at(down, first + r)))

    inner = jax.lax.fori_loop(1, rows, between, jnp.full_like(up, -2))
    row = jnp.concatenate([columns[:, ::rows], bound, columns], axis=1)
    best = jnp.argmax(jnp.concatenate([largest, on_bound, inner], axis=1), axis=1, keepdims=True)
    ends = jnp.concatenate([single, at(feature, at(row, best))], axis=1)
    # The better of the two features with its best partner, never itself.
    across = lambda v: at(v, ends)[:, :, None] + v[:, None, :]
    products = _product(across(gain), across(fall))
    products = jnp.where(position[:, None, :] == ends[:, :, None], -3, products)
    best = jnp.argmax(products.reshape(batch, -1), axis=1)
    found = at(products.reshape(batch, -1), best[:, None])[:, 0] > 0
    return at(ends, best[:, None] // features)[:, 0], best % features, found


def best_two(gain: Array, free: Array) -> tuple[Array, Array, Array]:
    """As ``best_pair`` where ``fall`` is ``gain``: the two free features that gain most."""
    gain = jnp.pad(jnp.where(free, gain, -jnp.inf), ((0, 0), (0, 1)), constant_values=-jnp.inf)
    most, which = jax.lax.top_k(gain, 2)
    return which[:, 0], which[:, 1], jnp.sum(most, axis=1) > 0


@pytree
class JSMA(Attack):
    """The Jacobian saliency map attack (Papernot et al. 2016, section III, algorithms 2 and 3).

    Each iteration changes by ``theta`` the pair of features that maximises ``-alpha * beta``,
    where alpha > 0 is the pair's effect on the target's output and beta < 0 that on the sum of all
    others; saturated features are left out. It ends when the target is reached, when the budget is
    spent, or when no pair is left. The Jacobian enters through two vector products alone, whatever
    the number of classes, and through one where probabilities are derived: they add up to one, so
    beta is exactly -alpha. Untargeted, every other class is tried as the target, the likeliest
    first, each time until the label is lost; the image with the fewest changed features is kept.

    Attributes:
      ball: an ``L0`` ball, whose eps is the number of features (not pixels) that may change; by
        default ``upsilon`` alone limits it.
      theta: what is added to a feature, in pixel units, not 0, scalar or ``[B]``; the paper's is
        +1, and -1 swaps the signs.
      upsilon: share of the features that may change, scalar or ``[B]``; 0.145 as in the paper,
        or 1 where the ball has an eps. There are ``floor(features * upsilon / 2)`` iterations.
      probabilities: derive the softmax, as the paper writes it, and not the logits. It changes
        fewer features; defensive distillation stops it (Carlini & Wagner 2017, section IV).
      steps: a limit on the iterations, at least 0; None for the budget's own. Inside ``jit``,
        where the budget is not known, the loop else runs to half of the features.
      loss: per-example loss of the record.
      goal: what is wanted, see ``Targeted``.
    """

    ball: L0 = dataclasses.field(default_factory=L0)
    theta: ArrayLike = per_example(default=1.0)
    upsilon: ArrayLike = per_example(default=None)
    probabilities: bool = static(default=True)
    steps: int | None = driver_only(default=None)
    loss: LossFn = static(default=margin)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("JSMA", self.ball, L0, expected="a ball L0(features)")
        check_count("JSMA", "steps", self.steps, 0, none=True)
        eps, theta = concrete(self.ball.eps), concrete(self.theta)
        if self.upsilon is None:
            free = eps is not None and np.isinf(eps).all()
            object.__setattr__(self, "upsilon", np.float32(_UPSILON if free else 1))
        check_number("JSMA", "upsilon", self.upsilon, zero=True)
        if theta is not None and not (np.isfinite(theta) & (theta != 0)).all():
            raise ValueError(f"JSMA: given theta={theta.tolist()}; expected numbers but 0")
        check_goal("JSMA", self.goal, Misclassify, Target, Undetected)

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.ball.bounds

    def solve(
        self, key: Key, model: Model, x: Array, y: Array, *, record: bool, loop: Loop = auto_loop
    ) -> Record:
        keys = example_keys(key, x.shape[0])
        features = math.prod(x.shape[1:])
        eps, upsilon = concrete(self.ball.eps), concrete(self.upsilon)
        steps = features // 2
        if eps is not None and upsilon is not None:
            with jax.ensure_compile_time_eval():
                steps = int(np.max(_moves(eps, upsilon, features)))
        if self.steps is not None:
            steps = min(steps, self.steps)

        def towards(rank: ArrayLike, record: bool) -> Record:
            search = _Towards(attack=self, rank=rank, steps=steps)
            return search.solve(keys, model, x, y, record=record, loop=loop)

        classes = jax.eval_shape(draws_of, model, x, keys).shape[-1]
        if self.goal.targeted or classes == 2:
            return towards(1, record)
        out = towards(1, True)
        if is_traced(self, key, model, x, y):
            body = lambda rank, out: _fewer(out, towards(rank, True))
            return jax.lax.fori_loop(2, classes, body, out)
        for rank in range(2, classes):
            out = _fewer(out, towards(rank, True))
        return out

    def with_goal(self, goal: Goal) -> JSMA:
        return replace(self, goal=goal)

    def scaled(self, factor: ArrayLike) -> JSMA:
        upsilon = jnp.multiply(self.upsilon, factor)
        return replace(self, ball=self.ball.scaled(factor), upsilon=upsilon)


def _moves(eps: ArrayLike, upsilon: ArrayLike, features: int) -> Array:
    """How many pairs may change; a float32 share of a whole number of features is taken as it."""
    allowed = jnp.minimum(jnp.minimum(eps, upsilon * features * (1 + 1e-6)), features)
    return jnp.floor(allowed / 2).astype(jnp.int32)


@jax.jit
def _fewer(old: Record, new: Record) -> Record:
    """Per example the record of the success that changes fewer features, with both costs."""
    take = new.success & (~old.success | (new.distance < old.distance))
    pick = lambda name: jnp.where(take, getattr(new, name), getattr(old, name))
    both = ("forwards", "backwards", "zero_gradient")
    return Record(
        x_adv=jnp.where(widen(take, new.x_adv), new.x_adv, old.x_adv),
        success=old.success | new.success,
        **{name: pick(name) for name in ("invalid", "loss", "distance", "first_success")},
        **{name: getattr(old, name) + getattr(new, name) for name in both},
    )


@pytree
class _State:
    """Between two iterations: the image and what was spent on it."""

    keys: Any  # [B] keys for a randomised model, else None
    x_adv: Array
    target: Array
    left: Array  # pairs that may still change; 0 for an example that has ended
    tally: Tally


@pytree
class _Towards(Wrapper, Iterative):  # type: ignore[misc, override]
    """``JSMA`` towards one class: the target, or the rank-th likeliest one but the label."""

    attack: JSMA
    rank: ArrayLike
    steps: int = driver_only()

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        del steps
        keys = key if is_stochastic(model) else None
        target, tally = y, Tally.start(x)
        if not self.goal.targeted:
            logits = jnp.mean(draws_of(model, x, fold_if_any(keys, 0)), axis=0)
            target, tally = of_rank(logits, y, self.rank), tally.spend(forwards=1)
        moves = _moves(self.attack.ball.eps, self.attack.upsilon, math.prod(x.shape[1:]))
        left = jnp.zeros_like(y) + moves
        return _State(keys=keys, x_adv=x, target=target, left=left, tally=tally)

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        keys = fold_if_any(state.keys, i + 1)
        attack, live = self.attack, self.live(state)

        def outputs(x_adv: Array) -> tuple[Array, Array]:
            draws = draws_of(model, x_adv, keys)
            shown = jax.nn.softmax(draws) if attack.probabilities else draws
            shown = jnp.mean(shown, axis=0)
            of_target = jnp.take_along_axis(shown, state.target[:, None], axis=1)[:, 0]
            return jnp.stack([of_target, jnp.sum(shown, axis=1) - of_target]), draws

        shown, pull, draws = jax.vjp(outputs, state.x_adv, has_aux=True)
        judged = judge(attack.goal, attack.loss, draws, y)

        def slope(of: int) -> Array:
            (grad,) = pull(jnp.zeros_like(shown).at[of].set(1))
            return jnp.where(jnp.isfinite(grad), grad, 0).reshape(x.shape[0], -1)

        theta = widen(jnp.broadcast_to(jnp.asarray(attack.theta, x.dtype), y.shape), x)
        lower, upper = attack.ball.box(x)
        room = jnp.where(theta > 0, upper - state.x_adv, state.x_adv - lower) > 0
        room = attack.ball.on_mask(room, False)
        sign, free = jnp.sign(theta).reshape(-1, 1), room.reshape(x.shape[0], -1)
        gain = sign * slope(0)
        lost, passes = jnp.all(gain == 0, axis=1), 1
        if attack.probabilities:
            p, q, found = best_two(gain, free)
        else:
            fall = -sign * slope(1)
            p, q, found = best_pair(gain, fall, free)
            lost, passes = lost & jnp.all(fall == 0, axis=1), 2
        feature = jnp.arange(gain.shape[1])[None]
        pair = (feature == p[:, None]) | (feature == q[:, None])
        move = live & found & ~judged.success
        changed = jnp.clip(state.x_adv + theta, lower, upper)
        pair = pair.reshape(x.shape) & widen(move, x)
        tally = state.tally.spend(live, jnp.where(live, passes, 0))
        tally = tally.lose(jnp.where(live & lost, passes, 0))
        return replace(
            state,
            x_adv=jnp.where(pair, changed, state.x_adv),
            left=jnp.where(move, state.left - 1, 0),
            tally=tally.see(judged, i, live),
        )

    def live(self, state: _State) -> Array:
        return state.left > 0
