"""The boundary attack: a random walk along the decision boundary, from labels alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import example_keys, fold_in_each
from advjax.arguments import check_ball, check_count, check_number
from advjax.attacks.core.judging import Tally
from advjax.attacks.core.minimal import Closest, KeepsClosest, free_pixels
from advjax.attacks.core.oracle import Labels
from advjax.balls import L2, Ball
from advjax.goals import Misclassify
from advjax.pytrees import Array, ArrayLike, Key, per_example, pytree, replace, static
from advjax.shapes import only, over_features, row, widen
from advjax.types import Goal, Model

_MODEL = 2**31 - 1  # what a key is folded with for a randomised model; no query's number
_BISECTIONS = 10  # of the way from the image to the start


def noisy_start(uniform: Array, tries: Array, ball: Ball, x: Array) -> Array:
    """The image under noise of the whole box, ``[B, ...]``.

    The first try of an example is noise alone; later ones are of a random contrast and every
    second is blended with the image: a model may see one class in all pure noise.

    Args:
      uniform: ``[B, D + 3]`` uniform numbers from 0 to 1, for D features.
      tries: ``[B]`` how often the example has tried before.
      ball: its box and mask.
      x: ``[B, ...]`` images.
    """
    lower, upper = ball.box(x)
    first = tries == 0
    weight = jnp.where(tries % 2 == 0, 1, uniform[:, 0])
    low = jnp.where(first, 0, uniform[:, 1])[:, None]
    high = jnp.where(first, 1, uniform[:, 2])[:, None]
    noise = (low + uniform[:, 3:] * (high - low)).reshape(x.shape)
    weight = jnp.where(free_pixels(ball, x), widen(weight, x), 0)
    return ball.clip(x + weight * (lower + noise * (upper - lower) - x))


def first_start(
    start: ArrayLike | None, uniform: Array, tries: Array, ball: Ball, x: Array
) -> Array:
    """The given start in the first try, noise in the others."""
    if start is None:
        return noisy_start(uniform, tries, ball, x)
    noise = noisy_start(uniform, tries - 1, ball, x)
    given = ball.clip(jnp.asarray(start, x.dtype))
    given = jnp.where(free_pixels(ball, x), given, x)
    return jnp.where(widen(tries == 0, x), given, noise)


class Decision(KeepsClosest):
    """Looks for the smallest perturbation from labels alone, starting at another class.

    Its state has ``keys``, ``closest`` and ``tally``.
    """

    queries: int
    start: ArrayLike
    start_queries: int

    def check(self) -> None:
        check_count(type(self).__name__, "queries", self.queries)
        check_count(type(self).__name__, "start_queries", self.start_queries)

    def check_fits(self, x: Array) -> None:
        super().check_fits(x)
        if self.start is not None and jnp.shape(self.start) != x.shape:
            raise ValueError(f"start: given shape {jnp.shape(self.start)}; expected {x.shape}")

    def live(self, state: Any) -> Array:
        """Who has queries left, and something to look for: not yet inside a finite eps."""
        used, distance = state.tally.forwards, state.closest.distance
        eps = jnp.asarray(self.ball.eps, distance.dtype)
        done = distance <= jnp.where(jnp.isfinite(eps), eps, 0)
        hopeless = ~state.closest.found & (used > self.start_queries)
        return ~done & ~hopeless & (used < self.queries)

    def _begin(self, key: Key, model: Model, x: Array, y: Array) -> dict[str, Any]:
        """The state's keys, closest image and tally after the look at the image."""
        keys, zero = example_keys(key, x.shape[0]), jnp.zeros_like(row(x))
        wrong = self._ask(keys, model, x, y, 0)
        return {
            "keys": keys,
            "closest": Closest.start(x).keep(x, wrong, zero),
            "tally": Tally.start(x, doubts=False).spend(forwards=1).hit(wrong, 0),
        }

    def _ask(self, keys: Key, model: Model, x: Array, y: Array, n: ArrayLike) -> Array:
        drawn = fold_in_each(fold_in_each(keys, _MODEL), n)
        return Labels(model).adversarial(x, y, goal=self.goal, key=drawn)

    def _seen(self, state: Any, image: Array, x: Array, asked: Array, keep: Array) -> Any:
        """The state after a query of those who ``asked [B]``; ``keep [B]``: an adversarial one."""
        distance, tally = self.ball.size(image - x), state.tally
        closest = state.closest.keep(image, keep, distance)
        tally = tally.spend(forwards=asked).hit(keep, tally.forwards)
        return replace(state, closest=closest, tally=tally)


@pytree
class _State:
    """Between two queries, per example; the walk stands at the closest image so far."""

    keys: Key
    closest: Closest
    tally: Tally
    low: Array  # distance at which the way to the start was not adversarial
    bisected: Array  # how often that way has been halved
    drawn: Array  # noises and directions so far
    checked: Array  # bool: the direction's spherical half has been queried and is adversarial
    spherical_step: Array
    source_step: Array
    spherical_tries: Array
    spherical_hits: Array
    source_tries: Array
    source_hits: Array


@pytree
class Boundary(Decision):
    """The boundary attack (Brendel et al. 2018, algorithm 1), L2, from labels alone.

    From noise that the model gets wrong, blended with the image as far as it stays wrong: a random
    step on the sphere around the image, then one towards it; kept where still adversarial and
    nearer. Both step lengths are the example's own: every ``check_every``-th direction is also
    queried before its second half, and the rates of success of the two halves lengthen the steps
    (above 1/2, 1/4) or shorten them (below 1/5, 1/10). With a finite eps an example stops inside
    it.

    Attributes:
      ball: L2; eps limits what counts as a success, infinite by default.
      queries: most queries per example: the look at the image, the search for a start and its
        blending included; the judging pass of the record is one forward more.
      spherical_step: first length of the step on the sphere, in units of the distance.
      source_step: first length of the step towards the image, in units of the distance.
      adaptation: factor by which the steps are changed.
      converged: an example stops where its source step is shorter.
      check_every: directions from one check of the spherical half to the next.
      windows: tries after which the rates of the spherical and the source half are looked at.
        Foolbox has 10 and (100, 30), which change nothing in the first 1,000 queries.
      start: ``[B, ...]`` images to start from, tried before noise; a targeted attack seldom finds
        its class in noise. None for noise alone.
      start_queries: most queries of the search for a start; an example without one keeps its
        image and fails.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball = L2()
    queries: int = static(default=25_000)
    spherical_step: ArrayLike = per_example(default=0.01)
    source_step: ArrayLike = per_example(default=0.01)
    adaptation: ArrayLike = per_example(default=1.5)
    converged: ArrayLike = per_example(default=1e-7)
    check_every: int = static(default=3)
    windows: tuple[int, int] = static(default=(10, 5))
    start: ArrayLike = per_example(image=True, default=None)
    start_queries: int = static(default=1000)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("Boundary", self.ball, L2, expected="L2(eps)")
        super().check()
        for name in ("spherical_step", "source_step", "adaptation"):
            check_number("Boundary", name, getattr(self, name))
        check_count("Boundary", "check_every", self.check_every)
        if len(self.windows) != 2 or not all(isinstance(n, int) and n >= 1 for n in self.windows):
            raise ValueError(
                f"Boundary: given windows={self.windows!r}; expected two integers >= 1"
            )

    @property
    def steps(self) -> int:
        return self.queries - 1

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        none, zero = jnp.zeros_like(y), jnp.zeros_like(row(x))
        return _State(
            **self._begin(key, model, x, y),
            low=zero,
            bisected=none,
            drawn=none,
            checked=none > 0,
            spherical_step=zero + jnp.asarray(self.spherical_step, x.dtype),
            source_step=zero + jnp.asarray(self.source_step, x.dtype),
            spherical_tries=none,
            spherical_hits=none,
            source_tries=none,
            source_hits=none,
        )

    def live(self, state: _State) -> Array:
        return super().live(state) & ~(state.source_step < self.converged)

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        live, closest = self.live(state), state.closest
        searching = ~closest.found
        bisecting = ~searching & (state.bisected < _BISECTIONS)
        walking = ~searching & ~bisecting
        checking = walking & ~state.checked & (state.drawn % self.check_every == 0)
        # One draw a query: uniform for a start, and made normal for a direction.
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.drawn)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (x[0].size + 3,), x.dtype))(keys)
        symmetric = jnp.maximum(2 * uniform[:, 3:] - 1, -1 + 1e-7)  # -1 would be an infinite step
        normal = jax.lax.erf_inv(symmetric).reshape(x.shape)

        middle = (state.low + closest.distance) / 2
        offset = closest.image - x
        halfway = x + offset * widen(jnp.where(bisecting, middle / closest.distance, 0), x)
        spherical, nearer = self._candidates(state, x, normal)
        candidate = jnp.where(widen(checking, x), spherical, nearer)
        candidate = jnp.where(widen(bisecting, x), halfway, candidate)
        start = first_start(self.start, uniform, state.tally.forwards - 1, self.ball, x)
        candidate = jnp.where(widen(searching, x), start, candidate)

        hit = self._ask(state.keys, model, candidate, y, i + 1)
        count = lambda which: which.astype(jnp.int32)
        after = replace(
            self._seen(state, candidate, x, live, live & hit & ~checking),
            low=jnp.where(bisecting & ~hit, middle, state.low),
            bisected=state.bisected + count(bisecting),
            drawn=state.drawn + count(~(checking & hit)),
            checked=checking & hit,
            spherical_tries=state.spherical_tries + count(checking),
            spherical_hits=state.spherical_hits + count(checking & hit),
            source_tries=state.source_tries + count(state.checked),
            source_hits=state.source_hits + count(state.checked & hit),
        )
        return only(live, self._adapted(after), state)

    def _candidates(self, state: _State, x: Array, normal: Array) -> tuple[Array, Array]:
        """A step on the sphere around the image, and one more towards the image."""
        clip, size = self.ball.clip, self.ball.size
        normal = jnp.where(free_pixels(self.ball, x), normal, 0)
        offset = state.closest.image - x
        distance = jnp.where(state.closest.found, state.closest.distance, 0)
        features = over_features(x)
        unit = offset / widen(jnp.where(distance > 0, distance, 1), x)
        normal -= unit * jnp.sum(normal * unit, axis=features, keepdims=True)
        length = size(normal)
        step = state.spherical_step * distance / jnp.where(length > 0, length, 1)
        turned = offset + widen(step, x) * normal
        turned /= widen(jnp.sqrt(1 + state.spherical_step**2), x)
        spherical = clip(x + turned)
        # The box may have brought the step nearer already, or moved it off the sphere.
        reached = size(spherical - x)
        shorter = jnp.maximum(state.source_step * distance + reached - distance, 0)
        factor = shorter / jnp.where(reached > 0, reached, 1)
        return spherical, clip(spherical + widen(factor, x) * (x - spherical))

    def _adapted(self, state: _State) -> _State:
        """With the steps changed after a full window of tries, which then starts again."""
        factor = jnp.asarray(self.adaptation, state.source_step.dtype)

        def change(tries: Array, hits: Array, window: int, low: float, high: float) -> Array:
            rate = hits / jnp.maximum(tries, 1)
            change = jnp.where(rate > high, factor, jnp.where(rate < low, 1 / factor, 1))
            return jnp.where(tries >= window, change, 1)

        of_sphere, of_source = self.windows
        both = change(state.spherical_tries, state.spherical_hits, of_sphere, 0.2, 0.5)
        source = change(state.source_tries, state.source_hits, of_source, 0.1, 0.25)
        # A curved boundary allows no longer steps than the distance itself.
        restart = lambda count, tries, window: jnp.where(tries >= window, 0, count)
        return replace(
            state,
            spherical_step=jnp.minimum(state.spherical_step * both, 1),
            source_step=jnp.minimum(state.source_step * both * source, 1),
            spherical_tries=restart(state.spherical_tries, state.spherical_tries, of_sphere),
            spherical_hits=restart(state.spherical_hits, state.spherical_tries, of_sphere),
            source_tries=restart(state.source_tries, state.source_tries, of_source),
            source_hits=restart(state.source_hits, state.source_tries, of_source),
        )
