"""The one-pixel attack: differential evolution on the scores alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from advjax.answers import example_keys, fold_in_each
from advjax.arguments import check_ball, check_count, check_pictures
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Tally, ask
from advjax.attacks.core.minimal import free_pixels
from advjax.attacks.core.oracle import Scores
from advjax.balls import L0
from advjax.goals import Misclassify
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, driver_only, pytree, replace, static
from advjax.shapes import widen
from advjax.types import Goal, LossFn, Model

_CLEAN = 2**31  # what keys are folded with beside the generations' numbers


@pytree
class _State:
    """Between two parts of a generation. P candidates of k pixels of 2 + C genes, in [0, 1]."""

    keys: Array
    parents: Array  # [B, P, k, 2 + C]
    fitness: Array  # [B, P]
    children: Array  # [B, P, k, 2 + C], or the parents that they did not beat
    child_fitness: Array  # [B, P]
    x_adv: Array  # [B, ...] the best image of all generations
    best_loss: Array
    live: Array
    tally: Tally


@pytree
class OnePixel(Iterative):
    """The one-pixel attack (Su et al. 2019, section III), by differential evolution.

    A candidate is the place and the value of ``pixels`` pixels, each with all of its channels.
    Every generation, each candidate meets one child ``a + factor * (b - c)`` of three other
    candidates, without crossover, and the fitter of the two stays. Needs scores, no gradients.
    An example ends with the generation that fools the model.

    Attributes:
      ball: an ``L0`` ball; its eps counts features, so a pixel of C channels counts C: with
        ``L0(3)`` one pixel of a colour image may change. By default ``pixels`` alone limits it.
      pixels: how many pixels a candidate changes, at least 1; 1, 3 and 5 in the paper. Where eps
        is less than ``pixels * C``, only the first ``eps // C`` of them are used.
      population: candidates, at least 4; 400 in the paper.
      steps: generations after the first draw, at least 0; 100 in the paper.
      factor: scale of the difference of two candidates; 0.5 in the paper.
      chunk: candidates of each example that the model sees at once, a divisor of ``population``;
        bounds the memory and changes no result.
      loss: per-example loss that the fittest candidate has the largest of.
      goal: what is wanted, see ``Targeted``.
    """

    ball: L0 = dataclasses.field(default_factory=L0)
    pixels: int = static(default=1)
    population: int = static(default=400)
    steps: int = driver_only(default=100)
    factor: ArrayLike = 0.5
    chunk: int = static(default=50)
    loss: LossFn = static(default=cross_entropy)
    goal: Goal = Misclassify()

    def check(self) -> None:
        check_ball("OnePixel", self.ball, L0, expected="a ball L0(features)")
        for name, least in (("pixels", 1), ("population", 4), ("steps", 0), ("chunk", 1)):
            check_count("OnePixel", name, getattr(self, name), least)
        object.__setattr__(self, "chunk", min(self.chunk, self.population))
        if self.population % self.chunk:
            raise ValueError(
                f"OnePixel: given chunk={self.chunk}; expected a divisor of "
                f"population={self.population}"
            )

    def check_fits(self, x: Array) -> None:
        check_pictures("OnePixel", x)
        super().check_fits(x)

    @property
    def _parts(self) -> int:
        return self.population // self.chunk

    @property
    def most_steps(self) -> int:
        # The driver's step is one part of a generation, and the first draw is a generation.
        return (self.steps + 1) * self._parts

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        keys = example_keys(key, x.shape[0])
        drawn = fold_in_each(keys, _CLEAN)
        _, judged = ask(self.goal, self.loss, Scores(model), x, y, drawn)
        genes = (x.shape[0], self.population, self.pixels, 2 + x.shape[3])
        parents = jnp.broadcast_to(jnp.zeros_like(x[:, :1, :1, :1]), genes)
        fitness = jnp.full_like(parents[:, :, 0, 0], -jnp.inf)
        return _State(
            keys=keys,
            parents=parents,
            fitness=fitness,
            children=parents,
            child_fitness=fitness,
            x_adv=x,
            best_loss=judged.loss,
            live=~judged.success,
            tally=Tally.start(x).spend(forwards=1).see(judged, 0),
        )

    def _first(self, key: Key, genes: tuple[int, ...]) -> Array:
        """Candidates whose places are uniform and whose values are Gaussian around grey."""
        place = jax.random.uniform(jax.random.fold_in(key, 0), (*genes[:-1], 2))
        value = jax.random.normal(jax.random.fold_in(key, 1), (*genes[:-1], genes[-1] - 2))
        return jnp.concatenate([place, jnp.clip(0.5 + 0.5 * value, 0, 1)], axis=-1)

    def _child(self, key: Key, parents: Array) -> Array:
        """For each candidate a mixture of three others, distinct."""
        number = self.population
        draw = lambda n, below: jax.random.randint(jax.random.fold_in(key, n), (number,), 1, below)
        # Distances to the three: each is drawn from what the ones before leave.
        a, b, c = draw(0, number), draw(1, number - 1), draw(2, number - 2)
        b += (b >= a).astype(b.dtype)
        c += (c >= jnp.minimum(a, b)).astype(c.dtype)
        c += (c >= jnp.maximum(a, b)).astype(c.dtype)
        a, b, c = (parents[(jnp.arange(number) + step) % number] for step in (a, b, c))
        return jnp.clip(a + jnp.asarray(self.factor) * (b - c), 0, 1)

    def _images(self, x: Array, genes: Array) -> Array:
        """``[B, P, H, W, C]``: the images with each candidate's pixels set."""
        batch, number = genes.shape[:2]
        height, width, channels = x.shape[1:]
        lower, upper = self.ball.box(genes)
        allowed = jnp.floor(jnp.asarray(self.ball.eps) / channels)
        allowed = jnp.broadcast_to(allowed, (batch,)).reshape(batch, 1, 1, 1)
        row = jnp.minimum((genes[..., 0] * height).astype(jnp.int32), height - 1)
        column = jnp.minimum((genes[..., 1] * width).astype(jnp.int32), width - 1)
        value = lower + genes[..., 2:] * (upper - lower)
        rows = jnp.arange(height).reshape(1, 1, -1, 1)
        columns = jnp.arange(width).reshape(1, 1, 1, -1)
        out = jnp.broadcast_to(x[:, None], (batch, number, *x.shape[1:]))
        for pixel in range(self.pixels):
            here = rows == row[:, :, pixel, None, None]
            here &= columns == column[:, :, pixel, None, None]
            here = (here & (pixel < allowed))[..., None]
            here &= free_pixels(self.ball, x)[:, None]
            out = jnp.where(here, value[:, :, pixel, None, None, :], out)
        return out

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        batch, live = x.shape[0], state.live
        generation, part = i // self._parts, i % self._parts
        keys = fold_in_each(state.keys, generation)
        first = jax.vmap(lambda k: self._first(k, state.parents.shape[1:]))(keys)
        mixed = jax.vmap(self._child)(keys, state.parents)
        cut = lambda v: jax.lax.dynamic_slice_in_dim(v, part * self.chunk, self.chunk, axis=1)
        genes = cut(jnp.where(generation == 0, first, mixed))
        images = self._images(x, genes)
        candidate = part * self.chunk + jnp.arange(self.chunk)
        each = lambda k: jax.vmap(lambda n: jax.random.fold_in(k, n + 3))(candidate)
        drawn, flat = jax.vmap(each)(keys).reshape(-1), images.reshape(-1, *x.shape[1:])
        labels, scores = jnp.repeat(y, self.chunk), Scores(model)
        _, judged = ask(self.goal, self.loss, scores, flat, labels, drawn)
        per_candidate = lambda v: v.reshape(batch, self.chunk)
        loss, success = per_candidate(judged.loss), per_candidate(judged.success)
        loss = jnp.where(jnp.isnan(loss), -jnp.inf, loss)
        fitter = loss > cut(state.fitness)
        new = jnp.where(fitter[..., None, None], genes, cut(state.parents))
        new_fitness = jnp.maximum(loss, cut(state.fitness))
        kept = lambda old, new: jnp.where(widen(live, new), new, cut(old))
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
            old, kept(old, new), part * self.chunk, axis=1
        )
        children = put(state.children, new)
        child_fitness = put(state.child_fitness, new_fitness)

        # Among the successes, or where there is none among all, the one with the largest loss.
        any_success = jnp.any(success, axis=1)
        rank = jnp.where(success | ~any_success[:, None], loss, -jnp.inf)
        winner = jnp.argmax(rank, axis=1)
        take = lambda v: jnp.take_along_axis(v, winner[:, None], axis=1)[:, 0]
        image = jnp.take_along_axis(images, winner.reshape(-1, 1, 1, 1, 1), axis=1)[:, 0]
        found = state.tally.found
        better = live & (
            (any_success & ~found) | ((any_success == found) & (take(loss) > state.best_loss))
        )
        tally = state.tally.spend(forwards=jnp.where(live, self.chunk, 0)).hit(
            live & any_success, generation
        )
        ends = part == self._parts - 1
        return replace(
            state,
            parents=jnp.where(ends, children, state.parents),
            fitness=jnp.where(ends, child_fitness, state.fitness),
            children=children,
            child_fitness=child_fitness,
            x_adv=jnp.where(widen(better, x), image, state.x_adv),
            best_loss=jnp.where(better, take(loss), state.best_loss),
            live=live & ~(ends & tally.found),
            tally=tally,
        )

    def live(self, state: _State) -> Array:
        return state.live
