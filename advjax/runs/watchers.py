"""Watchers look at a run now and then and may end it; each is a value, and runs take several."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advjax.runs.folder import Row
from advjax.runs.outcome import Snapshot


@dataclasses.dataclass(frozen=True)
class View:
    """What a watcher sees of a run.

    Attributes:
      step: how many steps have been made.
      state: the state after them.
      history: the rows so far.
      best: the best evaluation so far, if there is one.
      interrupt: for a look that takes long, to be called now and then; may end the run.
    """

    step: int
    state: Any
    history: Sequence[Row]
    best: Snapshot | None
    interrupt: Callable[..., None]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a watcher found.

    Attributes:
      stop: why the run ends here, in one line; None to go on.
      metrics: a row of the history, kind ``watch``; empty for none.
      memory: JSON-able, handed to the next look, also of a resumed run.
    """

    stop: str | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    memory: Any = None


class Watcher(abc.ABC):
    """Looks at a run; what it remembers is kept in the run's checkpoints.

    Attributes:
      name: what its memory is called there; different for the watchers of one run.
      every: steps between its looks; None for a look after every evaluation but the last step's.
    """

    name: str = ""
    every: int | None = None

    @abc.abstractmethod
    def look(self, view: View, memory: Any) -> Finding:
        """What it finds, given what the look before it remembered (None at first)."""


@dataclasses.dataclass(frozen=True)
class Patience(Watcher):
    """Ends a run that gets no better (early stopping).

    Attributes:
      evaluations: how many without a new best it waits for.
      show: a score in words.
    """

    evaluations: int
    show: Callable[[float], str] = "{:.6g}".format

    def look(self, view: View, memory: Any) -> Finding:
        best = view.best
        assert best is not None
        after = [r for r in view.history if r["kind"] == "evaluation" and r["step"] > best.step]
        if len(after) < self.evaluations:
            return Finding()
        return Finding(
            f"early stopping: no better evaluation since step {best.step} ({self.show(best.score)})"
        )


@dataclasses.dataclass(frozen=True)
class StopWhen(Watcher):
    """Ends a run when a function says so.

    Attributes:
      function: of the rows so far; a text that it returns is the reason, None goes on.
    """

    function: Callable[[Sequence[Row]], str | None]

    def look(self, view: View, memory: Any) -> Finding:
        return Finding(self.function(view.history))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drop(Watcher):
    """Ends a run when a share in [0, 1] falls by too much from one look to the next.

    Without evaluations, the best model is that of the last look that was passed.

    Attributes:
      measure: the share, of a view.
      limit: the largest fall that is passed, in [0, 1].
      metric: what the share is called in the history.
      what: the beginning of the reason, ``"{what} fell from 80.0 to 20.0 % in one {per}"``.
      per: what lies between two looks.
    """

    name: str = dataclasses.field()  # no default, as that of ``Watcher`` would be
    every: int = dataclasses.field()
    measure: Callable[[View], float]
    limit: float
    metric: str
    what: str
    per: str = "look"

    def look(self, view: View, memory: Any) -> Finding:
        now = self.measure(view)
        stop = None
        if memory is not None and memory - now > self.limit:
            fall = f"fell from {100 * memory:.1f} to {100 * now:.1f} %"
            stop = f"{self.what} {fall} in one {self.per}"
        return Finding(stop, {self.metric: now}, now)
