"""Interval bound propagation: what the logits can be for every image of a box.

The network's program is walked through operation by operation, each value with a lower and an upper
bound. Every bound is pushed outward by as much as rounding can change it, so what holds here holds
for the numbers that the float32 network computes:

* a product or convolution of n terms by ``(2 n + 16) eps sum |w| max |x|``: its own rounding in
  any order of summation, that of the centre and the radius of the bounds, and theirs of the inputs;
  on GPU and TPU, where the default precision rounds the factors to TF32 or bfloat16, that as well;
* sums, differences, products and quotients by 4 eps of what goes in;

where ``eps = 2^-23``. Maxima, comparisons and what only moves values around are exact.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from advjax.answers import as_model, is_stochastic
from advjax.arguments import check_ball
from advjax.balls import Ball, Linf
from advjax.checks import check_images, check_labels
from advjax.pytrees import Array

_EPS, _TINY = 2.0**-23, float(np.finfo(np.float32).tiny)


def bounds(model: Any, x_lower: Any, x_upper: Any) -> tuple[Array, Array]:
    """The logits' lower and upper bounds ``[B, K]`` for every image between two images.

    Sound, rounding included (see the module), as long as no logit overflows; where a bound does it
    is infinite.

    Args:
      model: a float32 network of affine layers, ReLU (or JumpReLU), max- and mean-pooling,
        BatchNorm in evaluation mode, residual and dense connections: all of the zoo.
      x_lower: ``[B, ...]`` smallest pixels.
      x_upper: ``[B, ...]`` largest pixels.

    Raises:
      NotImplementedError: if the network contains an operation without a rule, by name.
    """
    return _bounds(_deterministic("bounds", model), check_images(x_lower), check_images(x_upper))


def worst_margins(model: Any, x_lower: Any, x_upper: Any, y: Any) -> Array:
    """Upper bounds of ``logits[k] - logits[y]``, ``[B, K]``, 0 at y (Gowal et al. 2018, section 3).

    The last linear layer is merged with the difference, which is tighter than the difference of
    ``bounds``. As logits they are the worst that the box allows. Arguments as for ``bounds``.
    """
    x_lower, model = check_images(x_lower), _deterministic("worst_margins", model)
    return _margins(model, x_lower, check_images(x_upper), check_labels(y, x_lower.shape[0]))


def certified(model: Any, ball: Ball, x: Any, y: Any) -> Array:
    """``[B]`` bool: every image in ball and box is classified as ``y`` (Gowal et al. 2018).

    False says nothing: the bounds may be loose.

    Args:
      model: as for ``bounds``.
      ball: ``Linf``, with or without a mask.
      x: ``[B, ...]`` images.
      y: ``[B]`` labels.
    """
    check_ball("certified", ball, Linf, finite=True)
    x = check_images(x)
    y = check_labels(y, x.shape[0])
    margins = worst_margins(model, *box(ball, x), y)
    return jnp.all((margins < 0) | jax.nn.one_hot(y, margins.shape[-1], dtype=bool), axis=-1)


def box(ball: Ball, x: Array) -> tuple[Array, Array]:
    """The smallest and largest images of an ``Linf`` ball around ``x``, cut to the ball's box."""
    lower, upper = ball.box(x)
    eps = jnp.asarray(ball.eps, x.dtype)
    eps = eps.reshape(eps.shape + (1,) * (x.ndim - eps.ndim)) if eps.ndim else eps
    moved = eps + 2 * _EPS * (jnp.abs(x) + eps)  # the sum is rounded
    moved = ball.on_mask(moved)
    # An image may lie outside the box by a rounding error.
    cut = lambda end: jnp.clip(end, jnp.minimum(lower, x), jnp.maximum(upper, x))
    return cut(x - moved), cut(x + moved)


@dataclasses.dataclass(frozen=True, eq=False)
class _Interval:
    """Bounds of one value, of a boolean too, with ``False < True``.

    Attributes:
      lower: the lower bound.
      upper: the upper bound.
      affine: ``(h, w, b)`` of a last layer ``h @ w + b``.
      compared: ``(a, b)`` where this is the truth of ``a >= b`` (or ``a > b``).
    """

    lower: Any
    upper: Any
    affine: tuple[_Interval, Any, Any] | None = None
    compared: tuple[Any, Any] | None = None

    @property
    def size(self) -> Array:
        return jnp.maximum(jnp.abs(self.lower), jnp.abs(self.upper))


def _deterministic(name: str, model: Any) -> Any:
    model = as_model(model)
    if is_stochastic(model):
        given = type(model).__name__
        raise ValueError(f"{name}: given {given}, which is randomised; expected a function of x")
    return model


@jax.jit
def _bounds(model: Any, lower: Array, upper: Array) -> tuple[Array, Array]:
    out = _propagate(model, lower, upper)
    return (
        jnp.where(jnp.isnan(out.lower), -jnp.inf, out.lower),
        jnp.where(jnp.isnan(out.upper), jnp.inf, out.upper),
    )


@jax.jit
def _margins(model: Any, lower: Array, upper: Array, y: Array) -> Array:
    out = _propagate(model, lower, upper)
    label = jax.nn.one_hot(y, out.lower.shape[-1], dtype=jnp.float32)[:, None]
    of_label = lambda values: jnp.sum(jnp.where(label[:, 0] > 0, values, 0), -1, keepdims=True)
    if out.affine is None:
        margins = out.upper - of_label(out.lower)
        margins += 2 * _EPS * (jnp.abs(out.upper) + jnp.abs(of_label(out.lower)))
    else:
        h, w, b = out.affine
        b = jnp.broadcast_to(b, out.lower.shape)
        centre, radius = _middle(h)
        weights = w.T[None] - w.T[y][:, None]  # [B, K, n]
        product = lambda a, b: jnp.einsum("bkn,bn->bk", a, b, precision="highest")
        # Each of the two logits is rounded by itself, however near their weights are.
        error = jnp.dot(h.size, jnp.abs(w), precision="highest") * _product_error(w.shape[0], None)
        error += 8 * _EPS * jnp.abs(b) + w.shape[0] * _TINY
        margins = product(weights, centre) + product(jnp.abs(weights), radius)
        margins += b - of_label(b) + error + of_label(error)
    margins = jnp.where(label[:, 0] > 0, 0, margins)
    return jnp.where(jnp.isnan(margins), jnp.inf, margins)


def _propagate(model: Any, lower: Array, upper: Array) -> _Interval:
    leaves, treedef = jax.tree.flatten(model)
    program = jax.make_jaxpr(lambda leaves, x: jax.tree.unflatten(treedef, leaves)(x))(
        leaves, lower
    )
    (out,) = _run(program, *leaves, _Interval(lower, upper))
    return out if isinstance(out, _Interval) else _Interval(out, out)


def _run(program: ClosedJaxpr | Jaxpr, *inputs: Any) -> list[Any]:
    """The values that a program returns, intervals or exact, for such inputs."""
    jaxpr, consts = program, ()
    if isinstance(program, ClosedJaxpr):
        jaxpr, consts = program.jaxpr, program.consts
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
    read = lambda var: var.val if isinstance(var, Literal) else known[var]
    for eqn in jaxpr.eqns:
        values = list(map(read, eqn.invars))
        known.update(zip(eqn.outvars, _apply(eqn, values), strict=True))
    return list(map(read, jaxpr.outvars))


def _apply(eqn: Any, values: list[Any]) -> Sequence[Any]:
    name = eqn.primitive.name
    if name in _CALLS:
        return _run(eqn.params[_CALLS[name]], *values)
    if not any(isinstance(value, _Interval) for value in values):
        out = _bind(eqn, values)
        return out if eqn.primitive.multiple_results else [out]
    dtype = eqn.outvars[0].aval.dtype
    if jnp.issubdtype(dtype, jnp.inexact) and dtype != jnp.float32:
        raise NotImplementedError(f"bounds: the network computes in {dtype}; expected float32")
    if name in _MONOTONE:
        ends = [_bind(eqn, [getattr(v, end, v) for v in values]) for end in ("lower", "upper")]
        return [_Interval(*ends)]
    if name not in _RULES:
        taken = ", ".join(sorted(_MONOTONE | _RULES.keys()))
        raise NotImplementedError(f"bounds: the network contains {name!r}; taken are {taken}")
    return [_RULES[name](eqn, *values)]


def _bind(eqn: Any, values: Sequence[Any], **changes: Any) -> Any:
    return eqn.primitive.bind(*values, **{**eqn.params, **changes})


def _interval(value: Any) -> _Interval:
    return value if isinstance(value, _Interval) else _Interval(value, value)


def _outward(lower: Any, upper: Any, error: Any, terms: int = 1) -> _Interval:
    """Bounds pushed outward, by what is lost to underflow too."""
    error = error + terms * _TINY
    return _Interval(lower - error, upper + error)


def _middle(x: _Interval) -> tuple[Array, Array]:
    return 0.5 * x.lower + 0.5 * x.upper, 0.5 * x.upper - 0.5 * x.lower


def _product_error(terms: int, precision: Any) -> float:
    """What rounding may add to ``sum w x``, as a share of ``sum |w| max |x|``."""
    factors = {"cpu": 0.0, "gpu": 2.0**-10}.get(jax.default_backend(), 2.0**-7)
    if precision in (_HIGHEST, (_HIGHEST, _HIGHEST)):
        factors = 0.0
    return (2 * terms + 16) * _EPS + 1.01 * factors


def _linear(eqn: Any, terms: int, left: Any, right: Any) -> _Interval:
    """A product of an interval and an exact factor, in either order."""
    if isinstance(left, _Interval) and isinstance(right, _Interval):
        raise NotImplementedError(
            f"bounds: the network contains {eqn.primitive.name!r} of two values that both depend "
            "on the image; expected one that does and weights"
        )
    x, w, turned = (left, right, False) if isinstance(left, _Interval) else (right, left, True)
    product = lambda *pair: _bind(eqn, pair[::-1] if turned else pair, precision=_HIGHEST)
    centre, radius = _middle(x)
    radius = radius + _product_error(terms, eqn.params["precision"]) * x.size
    centre, radius = product(centre, w), product(radius, jnp.abs(w))
    return _outward(centre - radius, centre + radius, 0.0, terms)


def _dot(eqn: Any, left: Any, right: Any) -> _Interval:
    dimensions = eqn.params["dimension_numbers"]
    (over, _), _ = dimensions
    terms = math.prod(eqn.invars[0].aval.shape[axis] for axis in over)
    out = _linear(eqn, terms, left, right)
    if dimensions == (((1,), (0,)), ((), ())) and not isinstance(right, _Interval):
        out = dataclasses.replace(out, affine=(left, right, jnp.float32(0)))
    return out


def _conv(eqn: Any, left: Any, right: Any) -> _Interval:
    weights = eqn.invars[1].aval.shape
    filters = weights[eqn.params["dimension_numbers"].rhs_spec[0]]
    return _linear(eqn, math.prod(weights) // filters, left, right)


def _add(eqn: Any, a: Any, b: Any) -> _Interval:
    del eqn
    x, y = _interval(a), _interval(b)
    out = _outward(x.lower + y.lower, x.upper + y.upper, 4 * _EPS * (x.size + y.size))
    for one, other in ((a, b), (b, a)):
        if isinstance(one, _Interval) and one.affine and not isinstance(other, _Interval):
            h, w, bias = one.affine
            return dataclasses.replace(out, affine=(h, w, bias + other))
    return out


def _negative(eqn: Any, x: _Interval) -> _Interval:
    del eqn
    return _Interval(-x.upper, -x.lower)


def _subtract(eqn: Any, a: Any, b: Any) -> _Interval:
    return _add(eqn, a, _Interval(-b.upper, -b.lower) if isinstance(b, _Interval) else -b)


def _multiply(eqn: Any, a: Any, b: Any) -> _Interval:
    del eqn
    x, y = _interval(a), _interval(b)
    ends = [p * q for p in (x.lower, x.upper) for q in (y.lower, y.upper)]
    lower, upper = functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends)
    return _outward(lower, upper, 4 * _EPS * (x.size * y.size))


def _divide(eqn: Any, a: Any, b: Any) -> _Interval:
    if isinstance(b, _Interval):
        raise NotImplementedError("bounds: the network divides by what depends on the image")
    return _multiply(eqn, a, 1 / b)


def _sum(eqn: Any, x: _Interval) -> _Interval:
    total = lambda value: _bind(eqn, [value])
    terms = math.prod(eqn.invars[0].aval.shape[axis] for axis in eqn.params["axes"])
    error = (2 * terms + 16) * _EPS * total(x.size)
    return _outward(total(x.lower), total(x.upper), error, terms)


def _at_least(eqn: Any, a: Any, b: Any) -> _Interval:
    x, y = _interval(a), _interval(b)
    # Written so that NaN decides nothing.
    return _Interval(x.lower >= y.upper, ~(x.upper < y.lower), compared=(a, b))


def _at_most(eqn: Any, a: Any, b: Any) -> _Interval:
    return _at_least(eqn, b, a)


def _differs(eqn: Any, a: Any, b: Any) -> Any:
    if a is b:  # a test for NaN
        return np.zeros(eqn.outvars[0].aval.shape, bool)
    x, y = _interval(a), _interval(b)
    return _Interval((x.upper < y.lower) | (y.upper < x.lower), np.ones(x.lower.shape, bool))


def _or(eqn: Any, a: Any, b: Any) -> Any:
    for one, other in ((a, b), (b, a)):
        if isinstance(other, np.ndarray) and not other.any():
            return one
    x, y = _interval(a), _interval(b)
    return _Interval(_bind(eqn, [x.lower, y.lower]), _bind(eqn, [x.upper, y.upper]))


def _select(eqn: Any, which: Any, no: Any, yes: Any) -> _Interval:
    """``where(which, yes, no)``. A value that was compared is what the comparison leaves of it,
    so that a maximum, a minimum and JumpReLU written like this have exact bounds."""
    x, y = _interval(no), _interval(yes)
    if not isinstance(which, _Interval):
        return _Interval(*(_bind(eqn, [which, *ends]) for ends in _ends(x, y)))
    if which.compared is not None:
        x, y = _knowing(x, no, *which.compared[::-1]), _knowing(y, yes, *which.compared)
    lower, upper = jnp.minimum(x.lower, y.lower), jnp.maximum(x.upper, y.upper)
    never, always = ~which.upper, which.lower
    pick = lambda both, no, yes: jnp.where(always, yes, jnp.where(never, no, both))
    return _Interval(pick(lower, x.lower, y.lower), pick(upper, x.upper, y.upper))


def _ends(*values: _Interval) -> tuple[list[Any], list[Any]]:
    return [v.lower for v in values], [v.upper for v in values]


def _knowing(x: _Interval, value: Any, large: Any, small: Any) -> _Interval:
    """The bounds of ``value`` given that ``large >= small``, of which it may be one."""
    if value is large:
        return _Interval(jnp.maximum(x.lower, _interval(small).lower), x.upper)
    if value is small:
        return _Interval(x.lower, jnp.minimum(x.upper, _interval(large).upper))
    return x


_HIGHEST = jax.lax.Precision.HIGHEST
_CALLS = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
}
# Without rounding, and never falling in any of their operands: the ends go where the values go.
_MONOTONE = {
    "broadcast_in_dim",
    "ceil",
    "clamp",
    "concatenate",
    "convert_element_type",
    "copy",
    "expand_dims",
    "floor",
    "max",
    "min",
    "pad",
    "reduce_max",
    "reduce_min",
    "reduce_window_max",
    "reduce_window_min",
    "reshape",
    "rev",
    "round",
    "sign",
    "slice",
    "squeeze",
    "transpose",
}
_RULES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "conv_general_dilated": _conv,
    "div": _divide,
    "dot_general": _dot,
    "ge": _at_least,
    "gt": _at_least,
    "le": _at_most,
    "lt": _at_most,
    "mul": _multiply,
    "ne": _differs,
    "neg": _negative,
    "or": _or,
    "reduce_sum": _sum,
    "select_n": _select,
    "sub": _subtract,
}
