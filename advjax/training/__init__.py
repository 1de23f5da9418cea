"""Training: objectives, the data-parallel step, the loop, checkpoints and run folders."""

from advjax import _faces
from advjax.runs import hosts as hosts
from advjax.runs.checkpoint import CheckpointError as CheckpointError
from advjax.runs.checkpoint import DamagedCheckpointError as DamagedCheckpointError
from advjax.runs.folder import RunError as RunError
from advjax.runs.folder import read_rows as read_rows
from advjax.runs.outcome import DivergedError as DivergedError
from advjax.runs.outcome import Event as Event
from advjax.runs.outcome import Result as Result
from advjax.runs.outcome import Snapshot as Snapshot
from advjax.runs.signals import Stopped as Stopped
from advjax.runs.state import TrainState as TrainState
from advjax.training.apply import Bound as Bound
from advjax.training.apply import LinenApply as LinenApply
from advjax.training.load import load_classifier as load_classifier
from advjax.training.load import read_config as read_config
from advjax.training.loop import fit as fit
from advjax.training.objectives import *
from advjax.training.objectives._shared import smoothed_cross_entropy as smoothed_cross_entropy
from advjax.training.optimizers import Optimizer as Optimizer
from advjax.training.optimizers import Schedule as Schedule
from advjax.training.optimizers import optimizer as optimizer
from advjax.training.optimizers import schedule as schedule
from advjax.training.retraining import Retrained as Retrained
from advjax.training.retraining import Round as Round
from advjax.training.retraining import retrain as retrain
from advjax.training.spec import Training as Training
from advjax.training.together import fit_together as fit_together
from advjax.types import Objective as _Objective

Crafting = _Objective  # its name where it crafts its inputs
_faces.declare(__name__)
