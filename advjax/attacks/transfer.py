"""Gradient sign attacks that are made to transfer: Nesterov, diverse inputs, translation, scale."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import example_keys, fold_in_each, is_stochastic
from advjax.arguments import check_ball, check_count, check_number
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Judgement, Tally, ask
from advjax.balls import Ball, concrete
from advjax.goals import Misclassify
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, driver_only, per_example, pytree, replace, static
from advjax.shapes import aligned, over_features, spread, vanished
from advjax.types import Goal, LossFn, Model


def _selector(start: Array, length: Array, size: int, dtype: Any) -> Array:
    """``[size, size]``: the line resized to ``length`` by nearest neighbour, put at ``start``.

    As a matrix, so that lengths are data: one trace, and a gradient that is a matrix product.
    """
    start, length = start.astype(jnp.int32), length.astype(jnp.int32)
    out, source = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    place = out - start
    nearest = ((2 * place + 1) * size) // (2 * length)  # of the pixels' centres
    return ((nearest == source) & (place >= 0) & (place < length)).astype(dtype)


def _both_axes(rows: Array, columns: Array, x: Array) -> Array:
    """``x [B, H, W, C]`` times a matrix for its rows and one for its columns."""
    exact = jax.lax.Precision.HIGHEST  # a selection that rounds the pixels is none
    x = jnp.einsum("bih,bhwc->biwc", rows, x, precision=exact)
    return jnp.einsum("bjw,biwc->bijc", columns, x, precision=exact)


def diverse(keys: Key, x: Array, probability: Any, smallest: Any, fill: Any) -> Array:
    """Input diversity: images shrunk to a random size at a random place, with a probability.

    Args:
      keys: ``[B]`` keys; consumed.
      x: ``[B, H, W, C]`` images.
      probability: that an image is changed at all.
      smallest: least size, as a share of the image's.
      fill: the value around the shrunk image.
    """
    height, width = x.shape[1:3]

    def draw(key: Key) -> tuple[Array, Array, Array]:
        change, size, top, left = jax.random.uniform(key, (4,))
        matrices = []
        for length, place in ((height, top), (width, left)):
            # Whole sizes below the image's own, uniformly; one draw for both sides.
            least = jnp.floor(smallest * length + 1e-4)
            shrunk = jnp.floor(least + size * (length - least)).clip(1, length)
            start = jnp.floor(place * (length - shrunk + 1))
            matrices.append(_selector(start, shrunk, length, x.dtype))
        return change, *matrices

    change, rows, columns = jax.vmap(draw)(keys)
    shrunk = _both_axes(rows, columns, x - fill) + fill
    return jnp.where((change < probability).reshape(-1, 1, 1, 1), shrunk, x)


def _smoother(length: int, reach: int, dtype: Any) -> Array:
    """``[length, length]``: convolution of a line with a Gaussian cut at three deviations."""
    place = jnp.arange(length, dtype=jnp.float32)
    away = place[:, None] - place[None, :]
    weight = lambda distance: jnp.exp(-0.5 * jnp.square(3.0 * distance / max(reach, 1)))
    total = jnp.sum(weight(jnp.arange(-reach, reach + 1, dtype=jnp.float32)))
    return jnp.where(jnp.abs(away) <= reach, weight(away) / total, 0).astype(dtype)


def smoothed(grad: Array, kernel: int) -> Array:
    """The gradient ``[B, H, W, C]`` convolved with a Gaussian, zero outside the image.

    Args:
      grad: gradients.
      kernel: odd size of the Gaussian, which it cuts at three standard deviations; a smaller
        image takes the largest odd size up to a quarter of its shorter side.
    """
    height, width = grad.shape[1:3]
    reach = min(kernel // 2, min(height, width) // 8)
    rows, columns = (_smoother(n, reach, grad.dtype) for n in (height, width))
    one = lambda matrix: jnp.broadcast_to(matrix, (grad.shape[0], *matrix.shape))
    return _both_axes(one(rows), one(columns), grad)


@pytree
class _State:
    """Between two steps: the iterate, the momentum and the tally."""

    keys: Array  # [B]; step i uses them folded with i
    x_adv: Array
    velocity: Array
    tally: Tally


@pytree
class TransferFGSM(Iterative):
    """The momentum iterative method with what makes its results fool other models.

    ``g <- momentum * g + grad / mean|grad|`` and ``x <- x + step_size * sign(g)`` in ball and box,
    from the image itself; the last iterate is returned. The gradient may be taken ahead of the
    iterate, over scaled copies, through random resizing, and smoothed. ``NIFGSM``, ``DIFGSM``,
    ``TIFGSM`` and ``SIFGSM`` are the published settings; the parts combine freely.

    Attributes:
      ball: the perturbations allowed; the papers' is ``Linf(16/255)``.
      step_size: length of a step in the ball's norm, pixel units, scalar or ``[B]``; ``eps /
        steps`` by default.
      steps: number of steps, at least 0.
      momentum: decay of the accumulated gradient; 0 for none.
      nesterov: take the gradient at ``x + step_size * momentum * g`` (Lin et al. 2020).
      scales: how many copies, image and ``1/2``, ``1/4``, ... of it, share the gradient; all of
        them are one batch, so memory grows with it.
      diversity: probability of resizing the input (Xie et al. 2019), 0 to 1; None for never.
      smallest: least size of a resized input, as a share of the image's.
      center: what scaled copies fade to and resized ones are padded with, a pixel value; by
        default the box's middle, as the papers' images lie in [-1, 1].
      kernel: odd size of the Gaussian that smooths the gradient (Dong et al. 2019); it ends at
        three standard deviations and at a quarter of a small image. None for no smoothing.
      loss: per-example loss ``(logits, y) -> [B]``.
      goal: what is wanted, see ``Targeted``.
    """

    ball: Ball
    step_size: ArrayLike = per_example(default=None)
    steps: int = driver_only(default=10)
    momentum: ArrayLike = 1.0
    nesterov: bool = static(default=False)
    scales: int = static(default=1)
    diversity: ArrayLike = None
    smallest: ArrayLike = 0.9
    center: ArrayLike = None
    kernel: int | None = static(default=None)
    loss: LossFn = static(default=cross_entropy)
    goal: Goal = Misclassify()

    def check(self) -> None:
        name = "TransferFGSM"
        check_ball(name, self.ball, finite=True)
        check_count(name, "steps", self.steps, 0)
        check_count(name, "scales", self.scales)
        if self.kernel is not None and not (
            isinstance(self.kernel, int) and self.kernel > 0 and self.kernel % 2
        ):
            raise ValueError(f"{name}: given kernel={self.kernel!r}; expected an odd integer")
        if self.step_size is None:
            object.__setattr__(self, "step_size", self.ball.eps / max(self.steps, 1))
        if self.center is None:
            lower, upper = self.ball.bounds
            object.__setattr__(self, "center", (lower + upper) / 2)
        check_number(name, "step_size", self.step_size, zero=True)
        check_number(name, "momentum", self.momentum, zero=True)
        for field in ("diversity", "smallest"):
            number = concrete(getattr(self, field))
            if number is not None and not ((number >= 0) & (number <= 1)).all():
                raise ValueError(f"{name}: given {field}={number.tolist()}; expected 0 to 1")

    def check_fits(self, x: Array) -> None:
        if x.ndim != 4 and (self.diversity is not None or self.kernel is not None):
            raise ValueError(
                f"TransferFGSM: given images of shape {x.shape}; expected [B, H, W, C] with "
                "diversity or a kernel"
            )
        super().check_fits(x)

    def init(self, key: Key, model: Model, x: Array, y: Array, steps: Array) -> _State:
        del model, y, steps
        keys = example_keys(key, x.shape[0])
        return _State(keys=keys, x_adv=x, velocity=jnp.zeros_like(x), tally=Tally.start(x))

    def _seen(self, keys: Key, x: Array) -> Array:
        """``[B, scales, ...]``: the copies of an image that its gradient is taken through."""
        center = aligned(jnp.asarray(self.center, x.dtype), x)
        copies = [center + (x - center) / 2**n for n in range(1, self.scales)]
        if self.diversity is not None:
            copies = [
                diverse(fold_in_each(keys, n), copy, self.diversity, self.smallest, center)
                for n, copy in enumerate([x, *copies])
            ]
        else:
            copies = [x, *copies]
        return jnp.stack(copies, axis=1)

    def step(self, i: Array, state: _State, model: Model, x: Array, y: Array) -> _State:
        keys = fold_in_each(state.keys, i)
        step_size = spread(self.step_size, x)
        momentum = jnp.asarray(self.momentum, x.dtype)
        drawn: Any = None
        if is_stochastic(model):
            each = lambda n: fold_in_each(keys, n + self.scales)
            drawn = jnp.stack([each(n) for n in range(self.scales)], axis=1).reshape(-1)

        def objective(at: Array) -> tuple[Array, Judgement]:
            seen = self._seen(keys, at).reshape(-1, *x.shape[1:])
            labels = jnp.repeat(y, self.scales)
            return ask(self.goal, self.loss, model, seen, labels, drawn)

        ahead = step_size * momentum * state.velocity if self.nesterov else 0
        grad, judged = jax.grad(objective, has_aux=True)(state.x_adv + ahead)
        grad = jnp.where(jnp.isfinite(grad), grad, 0)
        features = over_features(x)
        lost = vanished(grad)
        if self.kernel is not None:
            grad = smoothed(grad, self.kernel)
        largest = jnp.max(jnp.abs(grad), axis=features, keepdims=True)
        grad = grad / jnp.where(largest > 0, largest, 1)  # so that no mean underflows
        mean = jnp.mean(jnp.abs(grad), axis=features, keepdims=True)
        velocity = momentum * state.velocity + grad / jnp.where(mean > 0, mean, 1)
        moved = state.x_adv + step_size * self.ball.steepest(velocity, state.x_adv)
        looks = judged.probabilities.reshape(-1, self.scales)[:, 0]
        tally = state.tally.spend(self.scales, self.scales).lose(jnp.where(lost, self.scales, 0))
        return replace(
            state,
            x_adv=self.ball.apply(x, moved - x),
            velocity=velocity,
            tally=replace(tally, probabilities=tally.probabilities & looks),
        )

    def late(self, state: _State) -> Array:
        return state.tally.forwards // self.scales  # steps

    def scaled(self, factor: ArrayLike) -> TransferFGSM:
        step_size = jnp.multiply(self.step_size, factor)
        return replace(self, ball=self.ball.scaled(factor), step_size=step_size)


def NIFGSM(*, ball: Ball, momentum: ArrayLike = 1.0, **fields: Any) -> TransferFGSM:
    """The Nesterov iterative method (Lin et al. 2020, section 3.1, equations 6 to 8).

    Args:
      ball: the perturbations allowed.
      momentum: decay of the accumulated gradient.
      **fields: further fields of ``TransferFGSM``.
    """
    return TransferFGSM(ball=ball, momentum=momentum, **({"nesterov": True} | fields))


def SIFGSM(*, ball: Ball, scales: int = 5, **fields: Any) -> TransferFGSM:
    """The scale-invariant Nesterov method, SI-NI-FGSM (Lin et al. 2020, algorithm 1).

    Args:
      ball: the perturbations allowed.
      scales: copies of the image, each half as strong as the one before.
      **fields: further fields of ``NIFGSM``.
    """
    return NIFGSM(ball=ball, scales=scales, **fields)


def DIFGSM(*, ball: Ball, diversity: ArrayLike = 0.5, **fields: Any) -> TransferFGSM:
    """The diverse inputs method, DI2-FGSM (Xie et al. 2019, section 3.2).

    With ``momentum=1`` it is M-DI2-FGSM. Images keep their size: the published code grows them
    from 299 to at most 330, this one shrinks them to at least 0.9, the same ratio.

    Args:
      ball: the perturbations allowed.
      diversity: probability of changing an input.
      **fields: further fields of ``TransferFGSM``.
    """
    return TransferFGSM(ball=ball, diversity=diversity, **({"momentum": 0.0} | fields))


def TIFGSM(*, ball: Ball, kernel: int = 15, **fields: Any) -> TransferFGSM:
    """The translation-invariant method, TI-FGSM (Dong et al. 2019, section 3.3).

    With ``momentum=1`` it is TI-MI-FGSM, with ``diversity=0.7`` beside TI-DIM.

    Args:
      ball: the perturbations allowed.
      kernel: odd size of the Gaussian.
      **fields: further fields of ``TransferFGSM``.
    """
    return TransferFGSM(ball=ball, kernel=kernel, **({"momentum": 0.0} | fields))
