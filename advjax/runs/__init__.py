"""Runs of any program: folder, checkpoints, resuming, metrics, watchers, signals, processes.

A run knows a state, not what it means: ``train(program, run_dir)`` takes any ``Program``. The
training of classifiers (``advjax.training.fit``) is one of them.
"""

from advjax.runs import hosts
from advjax.runs.checkpoint import CheckpointError, DamagedCheckpointError
from advjax.runs.folder import RunError, read_config, read_rows
from advjax.runs.loop import train
from advjax.runs.outcome import DivergedError, Event, Result, Snapshot
from advjax.runs.program import Program
from advjax.runs.signals import Stopped
from advjax.runs.state import Average, EqualAverage, MovingAverage, TrainState
from advjax.runs.watchers import Drop, Finding, Patience, StopWhen, View, Watcher

__all__ = [
    "Average",
    "CheckpointError",
    "DamagedCheckpointError",
    "DivergedError",
    "Drop",
    "EqualAverage",
    "Event",
    "Finding",
    "MovingAverage",
    "Patience",
    "Program",
    "Result",
    "RunError",
    "Snapshot",
    "StopWhen",
    "Stopped",
    "TrainState",
    "View",
    "Watcher",
    "hosts",
    "read_config",
    "read_rows",
    "train",
]
