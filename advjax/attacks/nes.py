"""Natural evolution strategies: gradients from scores alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import example_keys, fold_in_each
from advjax.arguments import check_ball, check_count, check_number
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Judgement, Tally, ask
from advjax.attacks.core.minimal import free_pixels
from advjax.attacks.core.oracle import Scores
from advjax.balls import Ball
from advjax.goals import Misclassify
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, per_example, pytree, replace, static
from advjax.shapes import only, row, spread, vanished, widen
from advjax.types import Goal, LossFn, Model

_MODEL = 2**31 - 1  # what a key is folded with for a randomised model; no step's number

Draw = Callable[[Key, tuple[int, ...], Any], Array]


@pytree
class Probing:
    """How a gradient is estimated: antithetic probes ``x +- radius * direction``.

    The mean over directions v of ``(loss(x + radius v) - loss(x - radius v)) / (2 radius) * v``,
    whose expectation is the gradient of the loss smoothed over the probes, for every v of mean
    zero and unit covariance. Probes may leave the box by their radius.

    Attributes:
      draw: ``(key, shape, dtype) -> direction``.
      samples: probes in all, two for each direction.
      chunk: probes in one batch of the model; None for all of them.
    """

    draw: Draw = static()
    samples: int = static()
    chunk: int | None = static(default=None)

    def estimate(
        self, attack: Any, scores: Scores, x: Array, y: Array, keys: Key, radius: ArrayLike
    ) -> tuple[Array, Array]:
        """The gradient ``[B, ...]`` and the mean loss of the probes ``[B]``.

        ``attack`` has ``ball`` (its mask holds for the probes too), ``loss`` and ``goal``;
        ``keys [B]`` are consumed. A pair of probes with a loss that is not finite counts as flat.
        """
        size = (self.chunk or self.samples) // 2
        radius = spread(radius, x[:, None])
        free = free_pixels(attack.ball, x)[:, None].astype(x.dtype)

        def some(first: ArrayLike) -> tuple[Array, Array]:
            numbers = first + jnp.arange(size)
            fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
            drawn = jax.vmap(jax.vmap(lambda key: self.draw(key, x.shape[1:], x.dtype)))
            v = drawn(fold(keys, numbers)) * free
            points = jnp.concatenate([x[:, None] + radius * v, x[:, None] - radius * v], axis=1)
            pair = jnp.concatenate([2 * numbers, 2 * numbers + 1])
            asked = fold(fold_in_each(keys, _MODEL), pair).reshape(-1)
            many = points.reshape(-1, *x.shape[1:])
            labels = jnp.repeat(y, 2 * size)
            _, judged = ask(attack.goal, attack.loss, scores, many, labels, asked)
            losses = judged.loss.reshape(-1, 2 * size)
            rise = losses[:, :size] - losses[:, size:]
            rise = jnp.where(jnp.isfinite(rise), rise, 0)
            slope = rise.reshape(rise.shape + (1,) * (x.ndim - 1)) / (2 * radius)
            return jnp.sum(slope * v, axis=1), jnp.sum(losses, axis=1)

        if size * 2 == self.samples:
            total = some(0)
        else:  # bounds the memory
            add = lambda c, total: jax.tree.map(jnp.add, total, some(c * size))
            nothing = (jnp.zeros_like(x), jnp.zeros_like(row(x)))
            total = jax.lax.fori_loop(0, self.samples // (2 * size), add, nothing)
        return total[0] / (self.samples // 2), total[1] / self.samples


class Probed(Iterative):
    """Spends ``samples`` queries on a gradient and one where it leads; ends at a success.

    Its state has ``keys``, ``x_adv`` and ``tally``.
    """

    queries: int
    samples: int
    chunk: int | None
    loss: LossFn

    @property
    def steps(self) -> int:
        return (self.queries - 1) // (self.samples + 1)

    def check(self) -> None:
        name, samples, chunk = type(self).__name__, self.samples, self.chunk
        check_ball(name, self.ball, finite=True)
        check_count(name, "queries", self.queries)
        if not isinstance(samples, int) or samples < 2 or samples % 2:
            raise ValueError(f"{name}: given samples={samples!r}; expected an even integer >= 2")
        divides = isinstance(chunk, int) and chunk >= 2 and chunk % 2 == 0 and samples % chunk == 0
        if chunk is not None and not divides:
            raise ValueError(
                f"{name}: given chunk={chunk!r} for {samples} samples; expected an even divisor"
            )

    def live(self, state: Any) -> Array:
        return ~state.tally.found & (state.tally.forwards + self.samples + 1 <= self.queries)

    def _judge(self, keys: Key, model: Model, x: Array, y: Array, n: ArrayLike) -> Judgement:
        drawn = fold_in_each(fold_in_each(keys, _MODEL), n)
        return ask(self.goal, self.loss, Scores(model), x, y, drawn)[1]

    def _begin(self, key: Key, model: Model, x: Array, y: Array) -> dict[str, Any]:
        """The state's keys, images and tally after the first look."""
        keys = example_keys(key, x.shape[0])
        tally = Tally.start(x, doubts=False).spend(forwards=1)
        return {
            "keys": keys,
            "x_adv": x,
            "tally": tally.see(self._judge(keys, model, x, y, 0), 0),
        }

    def _estimate(
        self, i: Array, state: Any, model: Model, y: Array, draw: Draw, radius: ArrayLike
    ) -> tuple[Array, Array]:
        """Step i's gradient ``[B, ...]``, and the mean loss of its probes ``[B]``."""
        probing = Probing(draw=draw, samples=self.samples, chunk=self.chunk)
        keys = fold_in_each(state.keys, i)
        return probing.estimate(self, Scores(model), state.x_adv, y, keys, radius)

    def _look(
        self, i: Array, before: Any, after: Any, model: Model, y: Array, gradient: Array
    ) -> Any:
        """The state of the live ones after the look at where step i's gradient has led."""
        judged = self._judge(before.keys, model, after.x_adv, y, i + 1)
        tally = before.tally.spend(forwards=self.samples + 1).lose(vanished(gradient))
        tally = tally.see(judged, tally.forwards - 1)
        return only(self.live(before), replace(after, tally=tally), before)


@pytree
class _State:
    """Between two steps, ``[B, ...]``: the iterate and what steers its next step."""

    keys: Key
    x_adv: Array
    gradient: Array  # running mean of the estimates
    step_size: Array
    window: Array  # [B, _WINDOW] losses, the newest last
    filled: Array  # how many of them count
    tally: Tally


_WINDOW = 5  # steps over which the loss must not fall, else the step is halved


@pytree
class NES(Probed):
    """PGD along gradients estimated from scores (Ilyas et al. 2018, section 2.2, algorithm 1).

    Every step spends ``samples`` queries around the image and one on the image it moves to; an
    example stops at its first adversarial image. The step is halved whenever the loss ended lower
    than it began in a window of five steps.

    Attributes:
      ball: the perturbations allowed; eps finite.
      queries: most queries per example, the first look at the image included; the judging pass
        of the record is one forward more.
      samples: probes per step, even: half of them with the other half's directions reversed.
      sigma: standard deviation of the probes, pixel units.
      step_size: length of the first step in the ball's norm; ``eps / 5`` by default, which is the
        paper's 0.01 at its eps of 0.05.
      min_step_size: what halving stops at; ``step_size / 200`` by default, the paper's 5e-5.
      momentum: weight of the earlier estimates in the running mean, 0 to 1.
      chunk: probes per example in one batch of the model, an even divisor of ``samples``; None
        for all at once. Bounds the memory.
      loss: per-example loss ``(logits, y) -> [B]``; a named function.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball
    queries: int = static(default=10_000)
    samples: int = static(default=50)
    sigma: ArrayLike = per_example(default=1e-3)
    step_size: ArrayLike = per_example(default=None)
    min_step_size: ArrayLike = per_example(default=None)
    momentum: ArrayLike = per_example(default=0.9)
    chunk: int | None = static(default=None)
    loss: LossFn = static(default=cross_entropy)
    goal: Goal = Misclassify()

    def check(self) -> None:
        super().check()
        check_number("NES", "sigma", self.sigma)
        if self.step_size is None:
            object.__setattr__(self, "step_size", self.ball.eps / 5)
        if self.min_step_size is None:
            object.__setattr__(self, "min_step_size", self.step_size / 200)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        return _State(
            **self._begin(key, model, x, y),
            gradient=jnp.zeros_like(x),
            step_size=row(x) * 0 + jnp.asarray(self.step_size, x.dtype),
            window=jnp.zeros_like(row(x))[:, None] + jnp.zeros((1, _WINDOW), x.dtype),
            filled=jnp.zeros_like(row(x), dtype=jnp.int32),
        )

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        new, level = self._estimate(i, state, model, y, jax.random.normal, self.sigma)
        decay = spread(self.momentum, x)
        gradient = decay * state.gradient + (1 - decay) * new

        window = jnp.concatenate([state.window[:, 1:], level[:, None]], axis=1)
        filled = jnp.minimum(state.filled + 1, _WINDOW)
        fell = (filled == _WINDOW) & (window[:, -1] < window[:, 0])
        least = jnp.minimum(jnp.asarray(self.min_step_size, x.dtype), state.step_size)
        step_size = jnp.where(fell, jnp.maximum(state.step_size / 2, least), state.step_size)

        moved = state.x_adv + widen(step_size, x) * self.ball.steepest(gradient, state.x_adv)
        after = replace(
            state,
            x_adv=self.ball.apply(x, moved - x),
            gradient=gradient,
            step_size=step_size,
            window=window,
            filled=jnp.where(fell, 0, filled),
        )
        return self._look(i, state, after, model, y, new)

    def scaled(self, factor: ArrayLike) -> NES:
        return replace(
            self,
            ball=self.ball.scaled(factor),
            step_size=jnp.multiply(self.step_size, factor),
            min_step_size=jnp.multiply(self.min_step_size, factor),
        )
