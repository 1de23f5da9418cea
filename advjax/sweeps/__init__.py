"""Sweeps: many configurations of one experiment, run once each, whatever is killed meanwhile.

Imported on first use, so that looking at a sweep does not load what training needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advjax.sweeps.cluster import Ray, Slurm
    from advjax.sweeps.driver import Told, sweep
    from advjax.sweeps.executors import Executor, Here, Processes
    from advjax.sweeps.grid import (
        Grid,
        choices,
        geometric,
        linear,
        log_uniform,
        sample,
        together,
        uniform,
    )
    from advjax.sweeps.outcome import Outcome, SweepError
    from advjax.sweeps.page import write_page
    from advjax.sweeps.search import Search
    from advjax.sweeps.store import Cell, Store
    from advjax.sweeps.table import Table, export, records, tabulate

_LAZY = {
    "cluster": ("Ray", "Slurm"),
    "driver": ("Told", "sweep"),
    "executors": ("Executor", "Here", "Processes"),
    "grid": (
        "Grid",
        "choices",
        "geometric",
        "linear",
        "log_uniform",
        "sample",
        "together",
        "uniform",
    ),
    "outcome": ("Outcome", "SweepError"),
    "page": ("write_page",),
    "search": ("Search",),
    "store": ("Cell", "Store"),
    "table": ("Table", "export", "records", "tabulate"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'advjax.sweeps' has no attribute {name!r}")
    return getattr(import_module(f"advjax.sweeps.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Cell",
    "Executor",
    "Grid",
    "Here",
    "Outcome",
    "Processes",
    "Ray",
    "Search",
    "Slurm",
    "Store",
    "SweepError",
    "Table",
    "Told",
    "choices",
    "export",
    "geometric",
    "linear",
    "log_uniform",
    "records",
    "sample",
    "sweep",
    "tabulate",
    "together",
    "uniform",
    "write_page",
]
