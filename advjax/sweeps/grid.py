"""Grids: the configurations of a sweep, put together with ``*``, ``+`` and ``where``."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

_PLAIN = (bool, int, float, str, type(None))


@dataclasses.dataclass(frozen=True)
class Grid:
    """A list of settings, each a mapping from field names to values.

    ``a * b`` has every setting of ``a`` with every one of ``b``, ``a + b`` those of both, each
    once, and ``where`` keeps some. An axis that makes sense for some networks only is a sum::

        dense = choices(network=["dense"], growth=[4, 16])
        plain = choices(network=["plain"], batch_norm=[False, True])
        grid = (dense + plain) * choices(lr=geometric(1e-4, 1e-2, 3), seed=range(3))

    A field that a setting does not name stays as the base configuration has it.

    Attributes:
      settings: the settings in order, made by ``choices``, ``together`` and ``sample``.
    """

    settings: tuple[Mapping[str, Any], ...]

    def __mul__(self, other: Grid) -> Grid:
        both = sorted(set(self.axes) & set(other.axes))
        if both:
            raise ValueError(f"{both[0]} is an axis of both grids; expected it in one of them")
        return Grid(tuple({**a, **b} for a in self.settings for b in other.settings))

    def __add__(self, other: Grid) -> Grid:
        seen = {canonical(s): s for s in (*self.settings, *other.settings)}
        return Grid(tuple(seen.values()))

    def where(self, keep: Callable[[Mapping[str, Any]], bool]) -> Grid:
        """The settings for which ``keep(setting)`` is true."""
        return Grid(tuple(s for s in self.settings if keep(s)))

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The fields that are set, and the values of each, in the order they appear."""
        found: dict[str, dict[str, Any]] = {}
        for setting in self.settings:
            for name, value in setting.items():
                found.setdefault(name, {}).setdefault(canonical(value), value)
        return {name: list(values.values()) for name, values in found.items()}

    def __len__(self) -> int:
        return len(self.settings)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.settings)

    def configs(self, base: Any) -> list[Any]:
        """``base`` with each setting in it; settings that give one configuration give it once.

        Args:
          base: a frozen dataclass. A whole number for a field whose base value is a float becomes
            one, so that 1 and 1.0 are one configuration.

        Raises:
          ValueError: for a field that ``base`` does not have (the near ones are named).
        """
        taken = {f.name for f in dataclasses.fields(base) if f.init}
        for name in self.axes:
            if name not in taken:
                near = difflib.get_close_matches(name, taken, n=3) or sorted(taken)
                raise ValueError(f"the grid sets {name}; fields of Config are {', '.join(near)}")
        made: dict[str, Any] = {}
        for setting in self.settings:
            config = dataclasses.replace(
                base, **{n: _like(getattr(base, n), v) for n, v in setting.items()}
            )
            made.setdefault(config_hash(config), config)
        return list(made.values())


def choices(**axes: Iterable[Any]) -> Grid:
    """Every combination of the axes' values; the last axis changes fastest.

    Args:
      **axes: field name to its values: numbers, strings, booleans, None, and tuples of them.

    Raises:
      ValueError: for an axis without values or with a value that is not of these kinds.
    """
    grid = Grid(({},))
    for name, values in axes.items():
        grid = grid * Grid(tuple({name: value} for value in values_of(name, values)))
    return grid


def together(**axes: Iterable[Any]) -> Grid:
    """Axes that change together: the first values of all, then the second ones, and so on.

    Raises:
      ValueError: if the axes have different lengths, and as ``choices`` does.
    """
    columns = {name: values_of(name, values) for name, values in axes.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"given axes of {lengths} values; expected as many on each")
    rows = zip(*columns.values(), strict=True)
    return Grid(tuple(dict(zip(columns, row, strict=True)) for row in rows))


def sample(n: int, seed: int = 0, /, **axes: Draw | Iterable[Any]) -> Grid:
    """Random search: ``n`` settings, each axis drawn by itself.

    Args:
      n: how many, at least 1.
      seed: decides the draws; the first m of n settings are those of ``sample(m)``.
      **axes: ``uniform``, ``log_uniform``, or values, of which one is drawn.

    Raises:
      ValueError: for bad values, and where ``n`` different settings are not found.
    """
    if n < 1:
        raise ValueError(f"n={n}; expected at least 1")
    draws: dict[str, Draw] = {}
    for name, axis in axes.items():
        draws[name] = axis if isinstance(axis, Draw) else Draw(values=values_of(name, axis))
    source = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(100 * n):
        setting = {name: draw(source) for name, draw in draws.items()}
        found.setdefault(canonical(setting), setting)
        if len(found) == n:
            return Grid(tuple(found.values()))
    raise ValueError(f"n={n}; these axes gave {len(found)} different settings in {100 * n} draws")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """How ``sample`` draws an axis: one of ``values``, or a number from ``low`` to ``high``."""

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def __call__(self, source: random.Random) -> Any:
        if self.values:
            return source.choice(self.values)
        if self.log:
            return self._short(math.exp(source.uniform(math.log(self.low), math.log(self.high))))
        return self._short(source.uniform(self.low, self.high))

    def write(self, value: Any) -> float | str:
        """The value as a search library knows it: choices are text."""
        if not self.values:
            return float(value)
        same = [v for v in self.values if canonical(v) == canonical(value)]
        return canonical((same or [v for v in self.values if v == value])[0])

    def read(self, written: float | str) -> Any:
        """The value of ``write``'s text, or of a number that is proposed."""
        if not self.values:
            return self._short(float(written))
        return next(value for value in self.values if canonical(value) == written)

    def _short(self, value: float) -> float:
        return min(max(_short(value), self.low), self.high)


def uniform(low: float, high: float) -> Draw:
    """Numbers spread evenly from ``low`` to ``high``, for ``sample``."""
    _check_range(low, high)
    return Draw(low=low, high=high)


def log_uniform(low: float, high: float) -> Draw:
    """Numbers whose logarithm is spread evenly, for ``sample``; ``low`` is positive."""
    _check_range(low, high, positive=True)
    return Draw(low=low, high=high, log=True)


def linear(low: float, high: float, n: int) -> tuple[float, ...]:
    """``n`` numbers from ``low`` to ``high`` at equal distances, both ends among them."""
    _check_range(low, high, n)
    return tuple(_short(low + (high - low) * i / max(n - 1, 1)) for i in range(n))


def geometric(low: float, high: float, n: int) -> tuple[float, ...]:
    """``n`` numbers from ``low`` to ``high`` at equal ratios, both ends among them."""
    _check_range(low, high, n, positive=True)
    return tuple(_short(low * (high / low) ** (i / max(n - 1, 1))) for i in range(n))


def config_hash(config: Any) -> str:
    """16 hex digits that name a configuration: equal fields, equal name, on every machine."""
    text = canonical(dataclasses.asdict(config))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: Any) -> str:
    """JSON with sorted names, the same for tuples and lists."""
    return json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))


def _short(value: float) -> float:
    """Six digits: a value that people can read, write and type again."""
    return float(f"{value:.6g}")


def _like(before: Any, value: Any) -> Any:
    """The value in the base value's kind, where only the writing differs."""
    if isinstance(before, float) and type(value) is int:
        return float(value)
    return tuple(value) if isinstance(value, list) else value


def values_of(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """An axis's values, checked."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"axis {name}: given {values!r}; expected a list of values")
    found = tuple(values)
    if not found:
        raise ValueError(f"axis {name} has no values; expected at least one")
    for value in found:
        parts = value if isinstance(value, (list, tuple)) else (value,)
        if not all(isinstance(part, _PLAIN) for part in parts):
            raise ValueError(
                f"axis {name}: given {value!r}; expected numbers, strings, booleans, None and "
                "tuples of them"
            )
    return found


def _check_range(low: float, high: float, n: int = 1, *, positive: bool = False) -> None:
    good = math.isfinite(low) and math.isfinite(high) and low <= high and n >= 1
    if not good or (positive and low <= 0):
        kind = "0 < low <= high" if positive else "low <= high"
        raise ValueError(f"given low={low}, high={high}, n={n}; expected {kind} and n >= 1")
