"""Training: objectives, the data-parallel step, the loop, checkpoints and run folders."""

from advjax.training.apply import Bound, LinenApply
from advjax.training.checkpoint import CheckpointError, DamagedCheckpointError
from advjax.training.load import load_classifier
from advjax.training.loop import fit
from advjax.training.objectives import Madry, Standard, smoothed_cross_entropy
from advjax.training.outcome import DivergedError, Event, Result, Snapshot
from advjax.training.runfolder import RunError, read_config, read_rows
from advjax.training.signals import Stopped
from advjax.training.spec import Training
from advjax.training.state import TrainState

__all__ = [
    "Bound",
    "CheckpointError",
    "DamagedCheckpointError",
    "DivergedError",
    "Event",
    "LinenApply",
    "Madry",
    "Result",
    "RunError",
    "Snapshot",
    "Standard",
    "Stopped",
    "TrainState",
    "Training",
    "fit",
    "load_classifier",
    "read_config",
    "read_rows",
    "smoothed_cross_entropy",
]
