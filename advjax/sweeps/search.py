"""Adaptive search: each cell's setting is chosen by what the cells before it found."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from advjax.sweeps.grid import Draw, canonical, values_of
from advjax.sweeps.store import ENDED, Cell

SAMPLERS = ("tpe", "random")
_LEAST = 5  # cells that have ended before any is stopped
_DRAWS = 100  # for a setting that is new
_RULE = "median rule"  # what the reasons of cells that it stopped begin with


@dataclasses.dataclass(frozen=True)
class Search:
    """What to look for, and where; takes the place of a ``Grid``.

    Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011; optuna's) propose settings, at
    random for the first ten. A cell is stopped at an evaluation where its best so far is below the
    median of what the finished ones had at that step (the median rule of Golovin et al., "Google
    Vizier", KDD 2017, section 3.2.2). The same seed and one cell at a time give the same search,
    also when it was killed and went on.

    Attributes:
      axes: field name to ``uniform``, ``log_uniform`` or the values to choose from.
      trials: how many settings in all; a larger number goes on with a search that has ended.
      metric: what to make large: a number that cells have, such as ``best/worst``.
      lowest: make it small instead.
      seed: decides the proposals.
      sampler: ``tpe``, or ``random`` to compare it with.
      stop_bad: whether the median rule ends cells. It needs a metric over time: one that starts
        with ``best/`` or ``last/``.
    """

    axes: Mapping[str, Any]
    trials: int
    metric: str = "best/worst"
    lowest: bool = False
    seed: int = 0
    sampler: str = "tpe"
    stop_bad: bool = True

    def __post_init__(self) -> None:
        if not self.axes:
            raise ValueError("axes={}; expected at least one axis")
        if self.trials < 1:
            raise ValueError(f"trials={self.trials}; expected at least 1")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler={self.sampler!r}; expected one of {', '.join(SAMPLERS)}")
        axes = {
            name: axis if isinstance(axis, Draw) else Draw(values=values_of(name, axis))
            for name, axis in self.axes.items()
        }
        object.__setattr__(self, "axes", axes)

    def describe(self) -> dict[str, Any]:
        """JSON-able: what must stay the same when a search goes on."""
        fields = dataclasses.asdict(self)
        del fields["trials"]
        return fields

    def propose(self, cells: Sequence[Cell]) -> dict[str, Any] | None:
        """A setting that no cell has; None where the axes have no other.

        Args:
          cells: those so far, in the order in which they were proposed.
        """
        seen = [self._written(cell.config) for cell in cells]
        for attempt in range(_DRAWS):
            # The state of the search is its cells alone, so the draws follow their number.
            source = random.Random(f"{self.seed}/{len(cells)}/{attempt}")
            if self.sampler == "tpe" and attempt < _DRAWS // 10:
                setting = self._asked(cells, source.randrange(2**31))
            else:
                setting = {name: axis(source) for name, axis in self.axes.items()}
            if self._written(setting) not in seen:
                return setting
        return None

    def _written(self, setting: Mapping[str, Any]) -> dict[str, float | str]:
        return {name: axis.write(setting[name]) for name, axis in self.axes.items()}

    def _asked(self, cells: Sequence[Cell], seed: int) -> dict[str, Any]:
        """What optuna proposes after these cells."""
        with _quiet() as optuna:
            direction = "minimize" if self.lowest else "maximize"
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=10, multivariate=True, constant_liar=True
            )
            study = optuna.create_study(direction=direction, sampler=sampler)
            space = {name: _distribution(optuna, axis) for name, axis in self.axes.items()}
            study.add_trials([self._trial(optuna, cell, space) for cell in cells])
            found = study.ask(space).params
        return {name: axis.read(found[name]) for name, axis in self.axes.items()}

    def _trial(self, optuna: Any, cell: Cell, space: dict[str, Any]) -> Any:
        """A cell as optuna knows it: lost ones rank behind all, stopped ones behind finished."""
        state, value, steps = optuna.trial.TrialState, None, {}
        if cell.status not in ENDED:
            kind = state.RUNNING
        elif (number := self.number(cell)) is None:
            kind = state.PRUNED
        elif _stopped(cell):
            kind, steps = state.PRUNED, {int(cell.metrics["step"]): number}
        else:
            kind, value = state.COMPLETE, number
        return optuna.trial.create_trial(
            state=kind,
            value=value,
            params=self._written(cell.config),
            distributions=space,
            intermediate_values=steps,
        )

    def number(self, cell: Cell) -> float | None:
        """What a finished cell has of the metric."""
        found = cell.metrics.get(self.metric) if cell.status == "done" else None
        return float(found) if isinstance(found, (int, float)) else None

    def ranked(self, cells: Iterable[Cell]) -> list[Cell]:
        """The finished cells, the best first; those that were stopped behind the others."""
        sign = 1 if self.lowest else -1
        key = lambda cell: (_stopped(cell), sign * (self.number(cell) or 0.0))
        return sorted((cell for cell in cells if self.number(cell) is not None), key=key)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The median rule as it stands when a cell begins; JSON-able.

    Attributes:
      metric: the name in the rows of a run's evaluations.
      best: whether the best so far counts, not the last value.
      lowest: whether low is good.
      medians: step, as text, to the median over finished cells.
    """

    metric: str
    best: bool
    lowest: bool
    medians: Mapping[str, float]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Why a run with these rows ends; None if it goes on."""
        steps = _over_time(rows, self.metric, self.best, self.lowest)
        if not steps:
            return None
        step, value = max(steps.items())
        median = self.medians.get(str(step))
        if median is None or not (value > median if self.lowest else value < median):
            return None
        side = "above" if self.lowest else "below"
        return f"{_RULE}: {self.metric} {value:.4g} at step {step}, {side} {median:.4g}"


def median_rule(search: Search, histories: Sequence[Sequence[Mapping[str, Any]]]) -> Rule | None:
    """The rule after these finished cells, from their rows; None while there are too few.

    A median is over all that ever got so far, at least five; no cell is stopped at its last step.
    """
    which, _, name = search.metric.partition("/")
    if not search.stop_bad or which not in ("best", "last") or not name:
        return None
    best = which == "best"
    found: dict[int, list[float]] = {}
    for rows in histories:
        for step, value in _over_time(rows, name, best, search.lowest).items():
            found.setdefault(step, []).append(value)
    last = max(found, default=0)
    medians = {
        str(step): statistics.median(values)
        for step, values in found.items()
        if len(values) >= _LEAST and step != last
    }
    return Rule(name, best, search.lowest, medians) if medians else None


def _over_time(
    rows: Sequence[Mapping[str, Any]], metric: str, best: bool, lowest: bool
) -> dict[int, float]:
    """Step to the metric of the evaluations, the best so far where that counts."""
    found: dict[int, float] = {}
    so_far: float | None = None
    for row in rows:
        value = row.get(metric)
        if row.get("kind") != "evaluation" or not isinstance(value, (int, float)):
            continue
        if so_far is None or not best or (value < so_far if lowest else value > so_far):
            so_far = float(value)
        found[int(row["step"])] = so_far
    return found


def _stopped(cell: Cell) -> bool:
    return cell.status == "done" and cell.reason.startswith(_RULE)


def _distribution(optuna: Any, axis: Draw) -> Any:
    if axis.values:
        return optuna.distributions.CategoricalDistribution([*map(canonical, axis.values)])
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """optuna, which tells every step and warns of what is new in it."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError("a search needs optuna: pip install 'advjax[search]'") from error
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(level)
