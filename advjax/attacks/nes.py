"""Natural evolution strategies: gradients from scores alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from advjax.attacks._checks import check_ball, check_count, check_number, check_per_example
from advjax.attacks._iterate import Iterative, Loop, LossFn, auto_loop, judge, outcome
from advjax.attacks._rows import only, row, spread, vanished, widen
from advjax.attacks.oracle import Scores
from advjax.balls import Ball
from advjax.losses import cross_entropy
from advjax.types import (
    Array,
    ArrayLike,
    Key,
    Record,
    example_keys,
    fold_in_each,
    pytree,
    replace,
    static,
)

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

        ``attack`` has ``ball`` (its mask holds for the probes too), ``loss`` and ``targeted``;
        ``keys [B]`` are consumed. A pair of probes with a loss that is not finite counts as flat.
        """
        size = (self.chunk or self.samples) // 2
        radius = spread(radius, x[:, None])
        mask = attack.ball.mask
        free = 1 if mask is None else jnp.broadcast_to(jnp.asarray(mask) != 0, x.shape)[:, None]

        def some(first: ArrayLike) -> tuple[Array, Array]:
            numbers = first + jnp.arange(size)
            fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
            drawn = jax.vmap(jax.vmap(lambda key: self.draw(key, x.shape[1:], x.dtype)))
            v = drawn(fold(keys, numbers)) * free
            points = jnp.concatenate([x[:, None] + radius * v, x[:, None] - radius * v], axis=1)
            asked = None
            if scores.stochastic:
                pair = jnp.concatenate([2 * numbers, 2 * numbers + 1])
                asked = fold(fold_in_each(keys, _MODEL), pair).reshape(-1)
            many = points.reshape(-1, *x.shape[1:])
            labels = jnp.repeat(y, 2 * size)
            _, judged = judge(attack.loss, attack.targeted, scores, many, labels, asked)
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

    Its state has ``keys``, ``x_adv``, ``fooled``, ``used``, ``first_success``, ``zero_gradient``.
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
            raise ValueError(f"{name}: given samples={samples!r}; an even integer >= 2 is taken")
        divides = isinstance(chunk, int) and chunk >= 2 and chunk % 2 == 0 and samples % chunk == 0
        if chunk is not None and not divides:
            raise ValueError(
                f"{name}: given chunk={chunk!r} for {samples} samples; an even divisor is taken"
            )

    def _fooled(self, keys: Key, scores: Scores, x: Array, y: Array, n: ArrayLike) -> Array:
        drawn = fold_in_each(fold_in_each(keys, _MODEL), n) if scores.stochastic else None
        return judge(self.loss, self.targeted, scores, x, y, drawn)[1].success

    def live(self, state: Any) -> Array:
        return ~state.fooled & (state.used + self.samples + 1 <= self.queries)

    def finish(self, state: Any, model: Any, x: Array, y: Array, *, record: bool) -> Record:
        return outcome(
            self,
            model,
            x,
            y,
            state.x_adv,
            fold_in_each(fold_in_each(state.keys, _MODEL), self.steps + 2),
            record=record,
            loss=self.loss,
            forwards=state.used,
            backwards=0,
            first_success=state.first_success,
            zero_gradient=state.zero_gradient,
        )


@pytree
class _State:
    """Between two steps, ``[B, ...]``: the iterate and what steers its next step."""

    keys: Key
    x_adv: Array
    gradient: Array  # running mean of the estimates
    step_size: Array
    window: Array  # [B, _WINDOW] losses, the newest last
    filled: Array  # how many of them count
    fooled: Array
    used: Array  # queries
    first_success: Array
    zero_gradient: Array


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
      targeted: labels are targets and the loss is lowered; see ``Targeted``.
      loop: who iterates.
    """

    ball: Ball
    queries: int = static(default=10_000)
    samples: int = static(default=50)
    sigma: ArrayLike = 1e-3
    step_size: ArrayLike = None
    min_step_size: ArrayLike = None
    momentum: ArrayLike = 0.9
    chunk: int | None = static(default=None)
    loss: LossFn = static(default=cross_entropy)
    targeted: bool = static(default=False)
    loop: Loop = static(default=auto_loop)

    def check(self) -> None:
        super().check()
        check_number("NES", "sigma", self.sigma)
        if self.step_size is None:
            object.__setattr__(self, "step_size", self.ball.eps / 5)
        if self.min_step_size is None:
            object.__setattr__(self, "min_step_size", self.step_size / 200)

    def check_fits(self, x: Array) -> None:
        names = ("sigma", "step_size", "min_step_size", "momentum")
        check_per_example(x, eps=self.ball.eps, **{name: getattr(self, name) for name in names})

    def init(self, key: Key, model: Any, x: Array, y: Array) -> _State:
        keys = example_keys(key, x.shape[0])
        fooled = self._fooled(keys, Scores(model), x, y, 0)
        none = jnp.zeros_like(row(x), dtype=jnp.int32)
        return _State(
            keys=keys,
            x_adv=x,
            gradient=jnp.zeros_like(x),
            step_size=row(x) * 0 + jnp.asarray(self.step_size, x.dtype),
            window=jnp.zeros_like(row(x))[:, None] + jnp.zeros(_WINDOW, x.dtype),
            filled=none,
            fooled=fooled,
            used=none + 1,
            first_success=jnp.where(fooled, 0, none - 1),
            zero_gradient=none,
        )

    def step(self, i: Array, state: _State, model: Any, x: Array, y: Array) -> _State:
        scores, live = Scores(model), self.live(state)
        probing = Probing(draw=jax.random.normal, samples=self.samples, chunk=self.chunk)
        keys = fold_in_each(state.keys, i)
        new, level = probing.estimate(self, scores, state.x_adv, y, keys, self.sigma)
        decay = spread(self.momentum, x)
        gradient = decay * state.gradient + (1 - decay) * new

        window = jnp.concatenate([state.window[:, 1:], level[:, None]], axis=1)
        filled = jnp.minimum(state.filled + 1, _WINDOW)
        fell = (filled == _WINDOW) & (window[:, -1] < window[:, 0])
        least = jnp.minimum(jnp.asarray(self.min_step_size, x.dtype), state.step_size)
        step_size = jnp.where(fell, jnp.maximum(state.step_size / 2, least), state.step_size)

        moved = state.x_adv + widen(step_size, x) * self.ball.steepest(gradient, state.x_adv)
        x_adv = self.ball.apply(x, moved - x)
        fooled = live & self._fooled(state.keys, scores, x_adv, y, i + 1)
        lost = vanished(new)
        used = state.used + self.samples + 1
        after = _State(
            keys=state.keys,
            x_adv=x_adv,
            gradient=gradient,
            step_size=step_size,
            window=window,
            filled=jnp.where(fell, 0, filled),
            fooled=fooled,
            used=used,
            first_success=jnp.where(fooled, used - 1, state.first_success),
            zero_gradient=state.zero_gradient + lost,
        )
        return only(live, after, state)

    def scaled(self, factor: ArrayLike) -> NES:
        return replace(
            self,
            ball=self.ball.scaled(factor),
            step_size=jnp.multiply(self.step_size, factor),
            min_step_size=jnp.multiply(self.min_step_size, factor),
        )
