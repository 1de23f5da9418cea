"""The engine of attacks that minimise ``distance + c * hinge(margin)``, an example at a time."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from advjax.arguments import check_goal, check_number
from advjax.attacks.core.judging import Judgement, ask_with_gradient
from advjax.attacks.core.minimal import KeepsClosest, SearchState
from advjax.balls import Ball
from advjax.losses import margin
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace
from advjax.shapes import only, over_features, row, vanished, widen
from advjax.types import Model

_GOLDEN = (5**0.5 - 1) / 2
_LARGEST = 1e10  # of c; beyond it, bisecting or not, the distance counts for nothing
_LEAST_LOOK = 20  # iterations: an objective that oscillates may not have fallen after ten


@pytree
class Adam:
    """Adam's two moments, ``[B, ...]``, and how many gradients they hold, ``[B]``."""

    mean: Array
    square: Array
    taken: Array

    @classmethod
    def start(cls, x: Array) -> Adam:
        """Before the first gradient."""
        zero = jnp.zeros_like(x)
        return cls(mean=zero, square=zero, taken=jnp.zeros_like(row(x), dtype=jnp.int32))

    def step(self, grad: Array) -> tuple[Array, Adam]:
        """The direction to go down (of about length one in every pixel) and the new moments."""
        grad = jnp.clip(grad, -1e18, 1e18)  # whose square is still finite
        mean, square = 0.9 * self.mean + 0.1 * grad, 0.999 * self.square + 0.001 * grad**2
        taken = self.taken + 1
        unbiased = lambda moment, decay: (
            moment / widen(1 - decay ** taken.astype(jnp.float32), grad)
        )
        direction = unbiased(mean, 0.9) / (jnp.sqrt(unbiased(square, 0.999)) + 1e-8)
        return direction, Adam(mean=mean, square=square, taken=taken)

    def forget(self, which: Array) -> Adam:
        """Started anew for some examples, ``[B]`` bool."""
        return only(which, Adam.start(self.mean), self)


@pytree
class Descent:
    """Adam over w ``[B, ...]``: the images are ``lower + (upper - lower) * (tanh(w) + 1) / 2``.

    ``(tanh(w) + 1) / 2`` is ``sigmoid(2 w)``, whose derivative is exact on both bounds.
    """

    w: Array
    adam: Adam

    @classmethod
    def start(cls, x: Array, ball: Ball) -> Descent:
        """At these images, kept finite.

        A pixel on a bound must still be able to leave it. The authors' code puts all of them 5e-7
        of the range inside; here each has its own distance, 1e-5 to 1e-4: they leave sooner, and a
        window of equal pixels does not lead the gradient of a max-pool to its first one alone.
        """
        lower, upper = ball.box(x)
        unit = 2 * (jnp.clip(x, lower, upper) - lower) / (upper - lower) - 1
        place = np.arange(np.prod(x.shape[1:]), dtype=np.float64).reshape(1, *x.shape[1:])
        own = 1e-5 + 9e-5 * (place * _GOLDEN % 1)  # spread evenly, neighbours far apart
        return cls(w=jnp.arctanh(np.float32(1 - 2 * own) * unit), adam=Adam.start(x))

    def image(self, i: ArrayLike, x: Array, ball: Ball) -> Array:
        """The images of iteration i, equal to ``x`` off the mask.

        The first one is the clean one, to the bit: it may be adversarial already.
        """
        lower, upper = ball.box(x)
        image = jnp.clip(lower + (upper - lower) * jax.nn.sigmoid(2 * self.w), lower, upper)
        return jnp.where(i == 0, x, ball.on_mask(image, x))

    def step(self, grad: Array, step_size: ArrayLike, ball: Ball) -> tuple[Descent, Array]:
        """One step down the gradient in the images; and whether to wait, ``[B]`` bool.

        Pixels that come away from a bound of the box take hundreds of iterations, during which
        nothing else is seen of them.
        """
        lower, upper = ball.box(grad)
        slope = 2 * (upper - lower) * jax.nn.sigmoid(2 * self.w) * jax.nn.sigmoid(-2 * self.w)
        direction, adam = self.adam.step(slope * grad)
        leaving = (jnp.abs(self.w) > 3) & (jnp.sign(self.w) * direction > 0.5)
        w = self.w - jnp.asarray(step_size) * direction
        return Descent(w=w, adam=adam), jnp.any(leaving, axis=over_features(w))

    def again(self, which: Array, image: Array, ball: Ball) -> Descent:
        """Started anew at other images for some examples, ``[B]`` bool."""
        return only(which, Descent.start(image, ball), self)


@pytree
class Progress:
    """Whether a minimisation still gets anywhere; all ``[B]``.

    Looked at every tenth of its length, but 20 iterations at least: it is over where the lowest
    objective has not fallen by 0.01 % since the last look. The authors' code compares single
    iterates instead, which oscillate, and sums over the batch.
    """

    taken: Array
    lowest: Array
    seen: Array

    @classmethod
    def start(cls, like: Array) -> Progress:
        """Before the first iteration; ``like`` is any ``[B]`` array."""
        infinite = jnp.full_like(like, jnp.inf, dtype=jnp.float32)
        zero = jnp.zeros_like(like, dtype=jnp.int32)
        return cls(taken=zero, lowest=infinite, seen=infinite)

    def after(
        self, objective: Array, length: ArrayLike, early: bool, wait: ArrayLike = False
    ) -> tuple[Array, Progress]:
        """Whether it is over, ``[B]`` bool, and the state after one more iteration.

        Args:
          length: the most iterations.
          early: stop where it gets nowhere.
          wait: but not yet; ``[B]`` bool.
        """
        length = jnp.asarray(length).astype(jnp.int32)
        taken = self.taken + 1
        lowest = jnp.where(objective < self.lowest, objective, self.lowest)
        look = taken % jnp.maximum(length // 10, _LEAST_LOOK) == 0
        stuck = look & (lowest > 0.9999 * self.seen) & ~jnp.asarray(wait)
        over = (taken >= length) | stuck if early else taken >= length
        new = Progress(taken=taken, lowest=lowest, seen=jnp.where(look, lowest, self.seen))
        return over, new

    def again(self, which: Array) -> Progress:
        """Started anew for some examples, ``[B]`` bool."""
        return only(which, Progress.start(self.lowest), self)


@pytree
class ConstantSearch:
    """The search for c, ``[B]`` each: times ten until a success, then by bisection.

    Every example is in a search of its own and begins the next one when that is over.
    """

    c: Array
    lower: Array
    upper: Array
    done: Array  # searches
    found: Array  # in the present search
    progress: Progress

    @classmethod
    def start(cls, c: ArrayLike, like: Array) -> ConstantSearch:
        """Before the first search, with c, scalar or ``[B]``; ``like`` is any ``[B]`` array."""
        progress = Progress.start(like)
        return cls(
            c=jnp.zeros_like(like, dtype=jnp.float32) + jnp.asarray(c),
            lower=jnp.zeros_like(progress.lowest),
            upper=progress.lowest,
            done=progress.taken,
            found=progress.taken > 0,
            progress=progress,
        )

    def after(
        self,
        objective: Array,
        success: Array,
        length: ArrayLike,
        early: bool,
        wait: ArrayLike = False,
    ) -> tuple[Array, ConstantSearch]:
        """Whether the search is over, ``[B]`` bool, and the state after one more iteration."""
        over, progress = self.progress.after(objective, length, early, wait)
        found = self.found | success
        upper = jnp.where(over & found, jnp.minimum(self.upper, self.c), self.upper)
        lower = jnp.where(over & ~found, jnp.maximum(self.lower, self.c), self.lower)
        larger = jnp.minimum(10 * self.c, np.float32(_LARGEST))
        new_c = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, larger)
        return over, ConstantSearch(
            c=jnp.where(over, new_c, self.c),
            lower=lower,
            upper=upper,
            done=self.done + over.astype(jnp.int32),
            found=found & ~over,
            progress=progress.again(over),
        )


@pytree
class PenaltyState(SearchState):
    """Between two iterations.

    Attributes:
      search: the attack's own variables.
      over: ``[B]`` bool, the search has ended.
    """

    search: Any
    over: Array


@pytree
class Seen:
    """What a model says of an iteration's images.

    Attributes:
      image: ``[B, ...]``; ``change`` from the clean one.
      judged: the answer; a success is one by a margin of at least ``confidence``.
      rise: ``[B, ...]`` gradient of the margin, finite, zero where nothing may change.
      short: ``[B]`` how much the margin falls short of ``confidence``.
    """

    image: Array
    change: Array
    judged: Judgement
    rise: Array
    short: Array

    def pull(self, c: Array) -> Array:
        """``[B, ...]`` the gradient of ``-c * short``, with c ``[B]``."""
        return widen(jnp.where(self.short > 0, c, 0), self.rise) * self.rise


class Penalty(KeepsClosest):
    """Minimises ``distance + c * max(confidence - margin, 0)``, each example by its own search.

    An attack says where its search begins, looks at images, and moves on. The convincing image of
    the smallest ``size`` is returned. An iteration costs a backward pass.

    Attributes:
      confidence: the margin in logits by which the image must be adversarial.
    """

    confidence: ArrayLike
    forwards_per_step: ClassVar[int] = 1

    def check_numbers(self, *positive: str) -> None:
        """Raises unless these are positive, ``confidence`` is not negative and ``goal`` a goal."""
        name = type(self).__name__
        for field in positive:
            check_number(name, field, getattr(self, field))
        check_number(name, "confidence", self.confidence, zero=True)
        check_goal(name, self.goal)

    @abc.abstractmethod
    def begin(self, x: Array, y: Array) -> Any:
        """The search before the first iteration."""

    @abc.abstractmethod
    def look(self, i: Array, state: PenaltyState, model: Model, x: Array, y: Array) -> Seen:
        """What the model says of the images of iteration i."""

    @abc.abstractmethod
    def move(self, seen: Seen, state: PenaltyState, x: Array) -> tuple[Any, Array]:
        """The search after the iteration, and for whom it has ended, ``[B]`` bool."""

    def size(self, change: Array) -> Array:
        """``[B]``; by it the best of all convincing images is chosen."""
        return self.ball.size(change)

    def seen(self, judged: Judgement, rise: Array, image: Array, change: Array) -> Seen:
        """An answer of a model, with the gradient, put together."""
        confidence = jnp.asarray(self.confidence)
        success = judged.success & (judged.loss >= confidence)
        return Seen(
            image=image,
            change=change,
            judged=replace(judged, success=success),
            rise=self.ball.on_mask(rise),
            short=jnp.maximum(confidence - judged.loss, 0),
        )

    def ask(self, model: Model, image: Array, x: Array, y: Array, keys: Key | None) -> Seen:
        """What the model says of these images."""
        judged, rise = ask_with_gradient(self.goal, margin, model, image, y, keys)
        return self.seen(judged, rise, image, image - x)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> PenaltyState:
        none = jnp.zeros_like(row(x), dtype=bool)
        return PenaltyState.start(key, model, x, steps, search=self.begin(x, y), over=none)

    def step(self, i: Array, state: PenaltyState, model: Model, x: Array, y: Array) -> PenaltyState:
        seen = self.look(i, state, model, x, y)
        new = replace(
            state,
            closest=state.closest.keep(seen.image, seen.judged.success, self.size(seen.change)),
            tally=state.tally.spend(forwards=self.forwards_per_step, backwards=1)
            .see(seen.judged, i)
            .lose(vanished(seen.rise)),
        )
        search, over = self.move(seen, new, x)
        new, live = replace(new, search=search, over=over), self.live(state)
        return new if live is None else only(live, new, state)

    def live(self, state: PenaltyState) -> Array | None:
        return ~state.over & (state.closest.distance > 0)

    def late(self, state: PenaltyState) -> Array:
        return state.tally.backwards

    def result(self, state: PenaltyState, x: Array) -> Array:
        distance = self.ball.size(state.closest.image - x)
        return replace(state.closest, distance=distance).within(self.ball, x)
