"""Training: objectives, the data-parallel step, the loop, checkpoints and run folders."""

from advjax.training.apply import Bound, LinenApply
from advjax.training.checkpoint import CheckpointError, DamagedCheckpointError
from advjax.training.load import load_classifier
from advjax.training.loop import fit
from advjax.training.objectives import (
    AWP,
    DANN,
    IBP,
    MART,
    TRADES,
    VAT,
    AdversarialRegularization,
    Crafting,
    EnsembleAdversarial,
    FreeAT,
    GradAlign,
    GradientPenalty,
    GraphRegularization,
    LogitSqueezing,
    Madry,
    MultiTask,
    Standard,
    dann_factor,
    dann_learning_rate,
    nearest_neighbours,
    neighbours_from_edges,
    smoothed_cross_entropy,
)
from advjax.training.outcome import DivergedError, Event, Result, Snapshot
from advjax.training.retraining import Retrained, Round, retrain
from advjax.training.runfolder import RunError, read_config, read_rows
from advjax.training.signals import Stopped
from advjax.training.spec import Training
from advjax.training.state import TrainState
from advjax.training.together import fit_together

__all__ = [
    "AWP",
    "AdversarialRegularization",
    "Bound",
    "CheckpointError",
    "Crafting",
    "DANN",
    "DamagedCheckpointError",
    "DivergedError",
    "EnsembleAdversarial",
    "Event",
    "FreeAT",
    "GradAlign",
    "GradientPenalty",
    "GraphRegularization",
    "IBP",
    "LinenApply",
    "LogitSqueezing",
    "MART",
    "Madry",
    "MultiTask",
    "Result",
    "Retrained",
    "Round",
    "RunError",
    "Snapshot",
    "Standard",
    "Stopped",
    "TRADES",
    "TrainState",
    "Training",
    "VAT",
    "dann_factor",
    "dann_learning_rate",
    "fit",
    "fit_together",
    "load_classifier",
    "nearest_neighbours",
    "neighbours_from_edges",
    "read_config",
    "read_rows",
    "retrain",
    "smoothed_cross_entropy",
]
