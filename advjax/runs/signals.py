"""SIGTERM and SIGINT as a request to stop after the current step, not as an exception."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(SystemExit):  # noqa: N818 - an exit, not an error
    """The run was asked to stop, has saved its state and can be resumed.

    Left uncaught it ends the process with code 128 + signal: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, number: int, after: str) -> None:
        super().__init__(128 + number)
        self.after = after

    def __str__(self) -> str:
        return f"stopped after {self.after}; the same command again goes on from there"


class Signals:
    """Remembers the first SIGTERM or SIGINT while it is entered; a second SIGINT interrupts.

    Outside the main thread, where Python allows no handlers, it remembers nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
