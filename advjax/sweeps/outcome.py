"""How a cell ends, and the error of a sweep that cannot go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


class SweepError(RuntimeError):
    """A sweep that cannot go on; one line that says why. What is finished stays finished."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a cell ended; JSON-able.

    Attributes:
      status: ``done``; ``ko``, a configuration that cannot be had (it diverged, it does not fit in
        memory, it ends its process); or ``failed``, an error of the experiment.
      reason: why it is not done, or ended before its last step, in one line.
      metrics: name to number; NaN and infinities are None.
      seconds: of the cell, those before it was resumed included where its run kept count.
    """

    status: str
    reason: str = ""
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
