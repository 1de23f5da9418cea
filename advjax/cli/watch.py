"""Live display of a training run, fed by the events of ``fit``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from advjax.cli.console import Console, Progress


@contextlib.contextmanager
def watch(console: Console, what: str = "training") -> Iterator[Callable[[Any], None]]:
    """A callable for ``fit(progress=...)``; may be told of several runs, one after the other."""
    with contextlib.ExitStack() as stack:
        yield _Watch(console, what, stack)


class _Watch:
    def __init__(self, console: Console, what: str, stack: contextlib.ExitStack) -> None:
        self.console, self.what, self.stack = console, what, stack
        self.bar: Progress | None = None
        self.said = ""

    def __call__(self, event: Any) -> None:
        if event.kind == "start":
            self.said = "compiling"
            self.bar = self.stack.enter_context(self.console.progress(self.what))
        elif event.kind == "note":
            self.console.note(event.text)
        elif event.kind == "train":
            self.said = _line(event.metrics, ("loss", "clean_accuracy", "robust_accuracy"))
        elif event.kind == "evaluation":
            names = [n for n in event.metrics if n != "worst" or len(event.metrics) > 3]
            found = _line(event.metrics, names)
            validated = any(n.startswith("validation/") for n in names)
            self.console.note(f"step {event.step}: {found if validated else f'test {found}'}")
        if self.bar is not None and event.kind in ("start", "step", "train"):
            self.bar(event.step, event.steps, f"step {event.step}/{event.steps} {self.said}")
        if event.kind == "finished":
            self.stack.close()
            self.bar = None


def _line(metrics: Any, names: Any) -> str:
    return "  ".join(
        f"{name} {metrics[name]:.4f}" if name == "loss" else f"{name} {100 * metrics[name]:.1f} %"
        for name in names
        if name in metrics
    )
