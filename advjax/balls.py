"""The geometry of a perturbation: an Lp ball, the image box and a mask, in one type.

A ball knows how to draw a start, project onto itself, walk uphill and measure. ``eps`` is one
number or ``[B]`` numbers, in pixel units, and is a pytree leaf like the bounds and the mask.
"""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import example_keys, fold_in_each
from advjax.pytrees import Array, ArrayLike, Key, Settings, per_example, pytree, replace, static
from advjax.selection import largest_few
from advjax.shapes import aligned, over_features, spread

# Passes of the projections' searches, more than any of 2,000 hard cases of up to 150,528 features
# took (13 and 33). A number, not a test for convergence: that would tie the examples of a batch,
# and the devices that share it, to each other, and cost a GPU a round trip a pass.
_PASSES = {"l2": 16, "l1": 40}


def concrete(value: object) -> np.ndarray | None:
    """The value as a NumPy array, or None where only a trace knows it."""
    if value is None or isinstance(value, jax.core.Tracer):
        return None
    return np.asarray(value)


def check_finite(attack: str, ball: Ball) -> None:
    """Raises ValueError unless ``eps`` is a limit, which an attack with a fixed budget needs."""
    eps = concrete(ball.eps)
    if eps is not None and not np.isfinite(eps).all():
        raise ValueError(f"{attack}: given {ball!r}; expected a finite eps")


def _largest(delta: Array) -> Array:
    return jnp.max(jnp.abs(delta), axis=over_features(delta), keepdims=True)


def _euclidean(delta: Array) -> Array:
    """L2 norm, ``[B, 1, ...]``, without overflow or underflow of the squares."""
    largest = _largest(delta)
    scaled = delta / jnp.where(largest > 0, largest, 1)
    axes = over_features(delta)
    return largest * jnp.sqrt(jnp.sum(scaled * scaled, axis=axes, keepdims=True))


@pytree
class Ball(Settings, abc.ABC):
    """All perturbations within ``eps`` of zero, inside the box, on the mask.

    Attributes:
      eps: radius, scalar or ``[B]``, in the units of the pixels; by default infinite, no limit
        but the box, for attacks that look for the smallest perturbation.
      lower: smallest pixel value, a number or one per channel. The box is structure, so that
        ``vmap`` with ``in_axes=0`` over a ball maps its eps alone.
      upper: largest pixel value, a number or one per channel.
      mask: which pixels may change (nonzero), broadcastable to the images; None for all of them.
    """

    eps: ArrayLike = per_example(kw_only=False, default=np.inf)
    lower: float | tuple[float, ...] = static(default=0.0)
    upper: float | tuple[float, ...] = static(default=1.0)
    mask: ArrayLike | None = per_example(image=True, default=None)

    def check(self) -> None:
        name = type(self).__name__
        eps = concrete(self.eps)
        if eps is not None and not (eps.dtype.kind in "iuf" and eps.size and (eps >= 0).all()):
            raise ValueError(f"{name}: given eps={eps.tolist()}; expected numbers >= 0")
        lower, upper = (np.asarray(bound, float) for bound in (self.lower, self.upper))
        if max(lower.ndim, upper.ndim) > 1 or not (lower < upper).all():
            raise ValueError(
                f"{name}: given lower={self.lower}, upper={self.upper}; "
                "expected numbers (or one per channel) with lower < upper"
            )
        for field, bound in (("lower", lower), ("upper", upper)):
            object.__setattr__(self, field, tuple(bound.tolist()) if bound.ndim else bound.item())

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box, each a scalar or ``[C]``, one per channel."""
        return np.asarray(self.lower, np.float32), np.asarray(self.upper, np.float32)

    def box(self, x: Array) -> tuple[Array, Array]:
        """The bounds, to be broadcast over images ``x [B, ..., C]``: scalars or ``[1, ..., C]``."""
        lower, upper = self.bounds
        return aligned(lower, x), aligned(upper, x)

    def clip(self, x: Array) -> Array:
        """The images ``[B, ...]`` with every pixel inside the box."""
        return jnp.clip(x, *self.box(x))

    @abc.abstractmethod
    def sample(self, key: Key, x: Array) -> Array:
        """A perturbation ``[B, ...]`` drawn uniformly from the ball (not yet cut to the box).

        Args:
          key: one key or ``[B]`` keys; consumed.
          x: ``[B, ...]`` images.
        """

    @abc.abstractmethod
    def project(
        self, delta: Array, lower: ArrayLike = -jnp.inf, upper: ArrayLike = jnp.inf
    ) -> Array:
        """The point of the ball, with ``lower <= point <= upper``, nearest in Euclidean distance.

        Exact, per example. ``lower <= 0 <= upper`` are limits on the perturbation itself.
        """

    @abc.abstractmethod
    def steepest(self, grad: Array, x: Array | None = None) -> Array:
        """The direction of norm at most one along which a linear loss grows fastest.

        Zero where the gradient is zero. ``x`` tells a sparse direction which pixels the box holds
        still; they do not count as moving.
        """

    @abc.abstractmethod
    def size(self, delta: Array) -> Array:
        """The norm, ``[B]``."""

    def scaled(self, factor: ArrayLike) -> Ball:
        """The ball with ``eps`` multiplied; one without limit stays so."""
        eps = jnp.asarray(self.eps)
        return replace(self, eps=jnp.where(jnp.isinf(eps), eps, eps * factor))

    def apply(self, x: Array, delta: Array) -> Array:
        """The image nearest to ``x + delta`` in both ball and box, ``[B, ...]``.

        Projecting on the two in turn is not the same: it stops short of the best point.
        """
        lower, upper = self.box(x)
        inside = self.project(delta, jnp.minimum(lower - x, 0), jnp.maximum(upper - x, 0))
        return jnp.clip(x + inside, lower, upper)

    def masked(self, delta: Array) -> Array:
        """The change ``[B, ...]`` of the features that may change; zero elsewhere."""
        if self.mask is None:
            return delta
        return delta * aligned(jnp.asarray(self.mask, delta.dtype), delta)

    def on_mask(self, changed: Array, x: ArrayLike = 0) -> Array:
        """The changed images ``[B, ...]`` where pixels may change, ``x`` itself elsewhere."""
        if self.mask is None:
            return changed
        return jnp.where(aligned(self.mask, changed) != 0, changed, x)

    def free(self, x: Array) -> Array:
        """``[B]`` number of features that may change."""
        return jnp.sum(self.masked(jnp.ones_like(x)), axis=over_features(x))


@pytree
class Linf(Ball):
    """Every pixel changes by at most ``eps``."""

    def sample(self, key: Key, x: Array) -> Array:
        draw = lambda k: jax.random.uniform(k, x.shape[1:], x.dtype, -1, 1)
        return self.masked(jax.vmap(draw)(example_keys(key, x.shape[0])) * spread(self.eps, x))

    def project(
        self, delta: Array, lower: ArrayLike = -jnp.inf, upper: ArrayLike = jnp.inf
    ) -> Array:
        eps = spread(self.eps, delta)
        return self.masked(jnp.clip(delta, jnp.maximum(-eps, lower), jnp.minimum(eps, upper)))

    def steepest(self, grad: Array, x: Array | None = None) -> Array:
        del x
        return self.masked(jnp.sign(grad))

    def size(self, delta: Array) -> Array:
        return _largest(delta).reshape(delta.shape[0])


@pytree
class L2(Ball):
    """The perturbation's Euclidean length is at most ``eps``."""

    def sample(self, key: Key, x: Array) -> Array:
        keys = example_keys(key, x.shape[0])
        normal = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(
            fold_in_each(keys, 0)
        )
        uniform = jax.vmap(lambda k: jax.random.uniform(k, (), x.dtype))(fold_in_each(keys, 1))
        # The volume grows as radius^d, so radius = u^(1/d) is uniform in the ball.
        radius = spread(uniform ** (1 / jnp.maximum(self.free(x), 1)), x)
        direction = self.masked(normal)
        length = _euclidean(direction)
        return spread(self.eps, x) * radius * direction / jnp.where(length > 0, length, 1)

    def project(
        self, delta: Array, lower: ArrayLike = -jnp.inf, upper: ArrayLike = jnp.inf
    ) -> Array:
        """``clip(t * delta)`` for the largest t <= 1 that fits the ball.

        Each pass takes the features at their limits as given and solves for t; t only grows and
        so does that set, which ends the search with the exact answer (and before it inside the
        ball).
        """
        delta = self.masked(delta)
        axes, eps, largest = over_features(delta), spread(self.eps, delta), _largest(delta)
        unit = delta / jnp.where(largest > 0, largest, 1)
        total = lambda values: jnp.sum(values, axis=axes, keepdims=True)

        def grow(_: Array, t: Array) -> Array:
            at_limit = ((unit < 0) & (t * unit <= lower)) | ((unit > 0) & (t * unit >= upper))
            left = eps**2 - total(jnp.where(at_limit, jnp.clip(t * unit, lower, upper) ** 2, 0))
            free = total(jnp.where(at_limit, 0, unit**2))
            ratio = jnp.maximum(left, 0) / jnp.where(free > 0, free, 1)
            new = jnp.where(free > 0, jnp.minimum(jnp.sqrt(ratio), largest), largest)
            return jnp.maximum(new, t)

        t = jax.lax.fori_loop(0, _PASSES["l2"], grow, jnp.zeros_like(largest))
        return jnp.clip(t * unit, lower, upper)

    def steepest(self, grad: Array, x: Array | None = None) -> Array:
        del x
        grad = self.masked(grad)
        largest = _largest(grad)
        grad = grad / jnp.where(largest > 0, largest, 1)
        length = _euclidean(grad)
        return grad / jnp.where(length > 0, length, 1)

    def size(self, delta: Array) -> Array:
        return _euclidean(delta).reshape(delta.shape[0])


@pytree
class L1(Ball):
    """The absolute changes add up to at most ``eps``.

    Attributes:
      fraction: share of the pixels that a step moves, those with the largest gradient; at least
        one moves. 0 is the exact steepest direction, which is too slow in practice: a pixel is
        soon at its bound (Tramer & Boneh 2019, section 4.1, take the top 1 %).
    """

    fraction: float = static(default=0.01)

    def check(self) -> None:
        super().check()
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"L1: given fraction={self.fraction}; expected 0 to 1")

    def sample(self, key: Key, x: Array) -> Array:
        keys = example_keys(key, x.shape[0])
        laplace = jax.vmap(lambda k: jax.random.laplace(k, x.shape[1:], x.dtype))(
            fold_in_each(keys, 0)
        )
        slack = jax.vmap(lambda k: jax.random.exponential(k, (), x.dtype))(fold_in_each(keys, 1))
        delta = self.masked(laplace)
        # d exponentials and one more, divided by their sum, are uniform in the simplex's interior.
        total = spread(self.size(delta) + slack, x)
        return spread(self.eps, x) * delta / jnp.where(total > 0, total, 1)

    def project(
        self, delta: Array, lower: ArrayLike = -jnp.inf, upper: ArrayLike = jnp.inf
    ) -> Array:
        """``clip(soft_threshold(delta, t))`` for the smallest t >= 0 that fits the ball.

        The size falls in t, linearly between breakpoints: Newton's step inside a bracket, or the
        bracket's middle, ends on the right piece, where Newton's step is exact.
        """
        delta = self.masked(delta)
        axes, magnitude = over_features(delta), jnp.abs(delta)
        eps = spread(self.eps, delta)
        room = jnp.where(delta > 0, upper, -jnp.asarray(lower))
        total = lambda values: jnp.sum(values, axis=axes, keepdims=True)
        excess_at = lambda t: total(jnp.clip(magnitude - t, 0, room)) - eps
        close = lambda excess: jnp.abs(excess) <= 1e-6 * eps

        def search(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            t, low, high = carry
            excess = excess_at(t)
            free = total((magnitude > t) & (magnitude - t < room))
            low, high = jnp.where(excess > 0, t, low), jnp.where(excess > 0, high, t)
            newton = t + excess / jnp.maximum(free, 1).astype(excess.dtype)
            inside = (newton > low) & (newton < high) & (free > 0)
            new = jnp.where(inside, newton, (low + high) / 2)
            return jnp.where(close(excess), t, new), low, high

        largest = _largest(delta)
        start = (jnp.zeros_like(largest), jnp.zeros_like(largest), largest)
        t, _, high = jax.lax.fori_loop(0, _PASSES["l1"], search, start)
        t = jnp.where(close(excess_at(t)), t, high)  # the bracket's upper end is inside the ball
        t = jnp.where(excess_at(0) > 0, t, 0)
        return jnp.sign(delta) * jnp.clip(magnitude - t, 0, room)

    def steepest(self, grad: Array, x: Array | None = None) -> Array:
        magnitude = jnp.abs(self.masked(grad)).reshape(grad.shape[0], -1)
        free = magnitude
        if x is not None:
            lower, upper = self.box(x)
            stuck = ((x <= lower) & (grad < 0)) | ((x >= upper) & (grad > 0))
            free = jnp.where(stuck.reshape(free.shape), 0, free)
        moved = min(max(round(self.fraction * free.shape[1]), 1), free.shape[1])
        threshold = jax.lax.top_k(free, moved)[0][:, -1:]
        count = jnp.sum((free >= threshold) & (free > 0), axis=1, keepdims=True)
        # Pixels held by the box push along: the projection would else shrink them for the others.
        chosen = (magnitude >= threshold) & (magnitude > 0) & (count > 0)
        weight = jnp.where(chosen, 1 / jnp.maximum(count, 1), 0).reshape(grad.shape)
        return jnp.sign(grad) * weight.astype(grad.dtype)

    def size(self, delta: Array) -> Array:
        return jnp.sum(jnp.abs(delta), axis=over_features(delta))


@pytree
class L0(Ball):
    """At most ``eps`` features (also named ``k``) change, each by as much as the box lets it."""

    @property
    def k(self) -> ArrayLike:
        return self.eps

    def sample(self, key: Key, x: Array) -> Array:
        keys = example_keys(key, x.shape[0])
        uniform = lambda k: jax.random.uniform(k, x.shape[1:], x.dtype)
        scores = self.masked(jax.vmap(uniform)(fold_in_each(keys, 0)))
        chosen = largest_few(scores, jnp.floor(spread(self.eps, x))) & (scores > 0)
        lower, upper = self.box(x)
        value = lower + jax.vmap(uniform)(fold_in_each(keys, 1)) * (upper - lower)
        return jnp.where(chosen, value - x, 0).astype(x.dtype)

    def project(
        self, delta: Array, lower: ArrayLike = -jnp.inf, upper: ArrayLike = jnp.inf
    ) -> Array:
        delta = self.masked(delta)
        cut = jnp.clip(delta, lower, upper)
        gain = delta**2 - (delta - cut) ** 2  # what changing the feature brings nearer
        chosen = largest_few(gain, jnp.floor(spread(self.eps, delta)))
        return jnp.where(chosen, cut, 0)

    def steepest(self, grad: Array, x: Array | None = None) -> Array:
        """The gradient with its largest entry scaled to one; the projection picks the features."""
        del x
        grad = self.masked(grad)
        largest = _largest(grad)
        return grad / jnp.where(largest > 0, largest, 1)

    def size(self, delta: Array) -> Array:
        return jnp.sum(delta != 0, axis=over_features(delta)).astype(delta.dtype)
