"""Optax's optimisers and schedules by name: they can be described, written down and read back.

``optimizer("adam", learning_rate=1e-3)`` is ``optax.adam(learning_rate=1e-3)`` that tells so: a
run's ``config.json`` and its report then name it, where any other optax transformation is known by
a hash of its program alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from advjax.pytrees import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Optimizer(optax.GradientTransformationExtraArgs):
    """An optax transformation that knows what it was made of; ``optimizer`` makes it.

    Attributes:
      name: of the function in ``optax``.
      arguments: its arguments by name.
      in_state: whether its numbers lie in its state (``optax.inject_hyperparams``).
    """

    name: str
    arguments: Mapping[str, Any]
    in_state: bool = False

    def __new__(cls, name: str, arguments: Mapping[str, Any], in_state: bool = False) -> Optimizer:
        function = _found(name, (name,))
        made = _call(optax.inject_hyperparams(function) if in_state else function, arguments)
        if not isinstance(made, optax.GradientTransformation):
            raise ValueError(f"optax.{name} is no optimiser; expected adam, sgd, chain, ...")
        return super().__new__(cls, made.init, optax.with_extra_args_support(made).update)

    def __getnewargs__(self) -> tuple[Any, ...]:  # type: ignore[override]
        return self.name, self.arguments, self.in_state

    def __repr__(self) -> str:
        return _shown("optimizer", self.name, self.arguments)


@dataclasses.dataclass(frozen=True, repr=False)
class Schedule:
    """A number for every step, ``schedule(step)``, that knows what it was made of.

    Attributes:
      name: as ``schedule`` takes it.
      arguments: its arguments by name.
    """

    name: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._made()

    def __call__(self, step: Array | int) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
            return self._made()(step)

    def __hash__(self) -> int:
        return hash((self.name, *self.arguments))

    def __repr__(self) -> str:
        return _shown("schedule", self.name, self.arguments)

    def _made(self) -> Callable[[Any], Any]:
        made = _call(_schedule(self.name), self.arguments)
        if isinstance(made, optax.GradientTransformation) or not callable(made):
            raise ValueError(f"optax.{self.name} is no schedule; expected linear, join, ...")
        return made


def optimizer(name: str, *args: Any, in_state: bool = False, **arguments: Any) -> Optimizer:
    """An optax optimiser, or another of its gradient transformations, by name.

        optimizer("adam", learning_rate=schedule("triangular", peak=5e-3, top=200, steps=1000))
        optimizer("chain", optimizer("add_decayed_weights", 5e-4), optimizer("sgd", 0.1))

    Args:
      name: a function of ``optax``: adam, sgd, adamw, chain, clip_by_global_norm, ...
      *args: its arguments, and
      **arguments: those with names.
      in_state: the numbers are kept in the optimiser's state: trainings that differ in them alone
        are one program.

    Raises:
      ValueError: for an unknown name or argument; near ones are named.
    """
    return Optimizer(name, _bound(_found(name, (name,)), args, arguments), in_state)


def schedule(name: str, *args: Any, **arguments: Any) -> Schedule:
    """A number for every step by name: a learning rate, or a share of eps.

    Args:
      name: ``"triangular"`` (below) or a schedule of ``optax``, with or without ``_schedule`` at
        its end: constant, linear, cosine_decay, piecewise_constant, warmup_cosine_decay, join, ...
      *args: its arguments, and
      **arguments: those with names.

    Raises:
      ValueError: for an unknown name or argument; near ones are named.
    """
    return Schedule(name, _bound(_schedule(name), args, arguments))


def triangular(peak: float, top: int, steps: int) -> optax.Schedule:
    """From 0 up to ``peak`` at step ``top`` and back to 0 at step ``steps``, in straight lines."""
    up = optax.linear_schedule(0.0, peak, top)
    down = optax.linear_schedule(peak, 0.0, steps - top)
    return optax.join_schedules([up, down], [top])


def _schedule(name: str) -> Callable[..., Any]:
    if name == "triangular":
        return triangular
    return _found(name, (name, f"{name}_schedule", f"{name}_schedules"))


def _found(name: str, names: tuple[str, ...]) -> Callable[..., Any]:
    for candidate in names:
        function: Any = getattr(optax, candidate, None)
        if inspect.isfunction(function) and not candidate.startswith("_"):
            return function
    known = [n for n in vars(optax) if not n.startswith("_") and inspect.isfunction(vars(optax)[n])]
    if len(names) > 1:
        known = [n.partition("_schedule")[0] for n in known if "_schedule" in n]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise ValueError(f"optax has no function {name!r}; near ones: {', '.join(near) or 'none'}")


def _bound(
    function: Callable[..., Any], args: tuple[Any, ...], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments by name."""
    _check(function, arguments)
    try:
        return dict(inspect.signature(function).bind(*args, **arguments).arguments)
    except TypeError as error:
        raise ValueError(f"optax.{function.__name__}: {error}") from error


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    _check(function, arguments)
    bound = inspect.BoundArguments(inspect.signature(function), dict(arguments))  # type: ignore[arg-type]
    try:
        return function(*bound.args, **bound.kwargs)
    except TypeError as error:
        raise ValueError(f"optax.{function.__name__}: {error}") from error


def _check(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    known = list(inspect.signature(function).parameters)
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
            raise ValueError(
                f"optax.{function.__name__} has no argument {name!r}; near ones: {', '.join(near)}"
            )


def _shown(maker: str, name: str, arguments: Mapping[str, Any]) -> str:
    return f"{maker}({', '.join([repr(name), *(f'{n}={v!r}' for n, v in arguments.items())])})"
