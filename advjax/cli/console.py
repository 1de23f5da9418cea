"""What a command says: results on stdout (text, or one JSON object), progress on stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """Told how far a piece of work is."""

    def __call__(self, done: float, total: float, said: str = "") -> None: ...


@dataclasses.dataclass(frozen=True)
class Console:
    """Where output goes. With ``json`` stdout holds exactly one JSON object."""

    json: bool = False

    def say(self, text: str = "") -> None:
        """A line of the result, for people."""
        if not self.json:
            print(text)

    def note(self, text: str) -> None:
        """A remark beside the result."""
        print(text, file=sys.stderr)

    def result(self, value: dict[str, Any]) -> None:
        """The result, for programs."""
        if self.json:
            print(json.dumps(value, allow_nan=False))

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A live bar with the time left on a terminal; elsewhere a line every few seconds."""
        if sys.stderr.isatty():
            with _bar(what) as bar:
                yield bar
        else:
            yield _Lines(what)


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console as RichConsole

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(elapsed_when_finished=False),
        progress.TextColumn("{task.fields[said]}"),
        console=RichConsole(stderr=True),
    )
    with bar:
        task = bar.add_task(what, total=None, said="")

        last = math.inf

        def tell(done: float, total: float, said: str = "") -> None:
            nonlocal last
            if done < last:  # a new stage, or a resumed run: the speed is counted from here
                bar.reset(task, completed=int(done), total=total)
            last = done
            bar.update(task, completed=done, total=total, said=said)

        yield tell


class _Lines:
    """Progress for a log: a line every few seconds, and the last one."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.began = self.start = self.told = time.monotonic()
        self.first = self.last = math.inf

    def __call__(self, done: float, total: float, said: str = "") -> None:
        now = time.monotonic()
        if done < self.last:  # a new stage, or a resumed run: the speed is counted from here
            self.first, self.start = done, now
        again, self.last = done == self.last, done
        if (again and done >= total) or (done < total and now - self.told < SECONDS_BETWEEN_LINES):
            return
        self.told = now
        passed, made = now - self.start, done - self.first
        left = f", {passed * (total - done) / made:.0f} s left" if made and done < total else ""
        line = f"{self.what}: {done / max(total, 1):4.0%}, {now - self.began:.0f} s{left}"
        print(f"{line}  {said}".rstrip(), file=sys.stderr, flush=True)
