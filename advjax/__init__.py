"""advjax: attack, harden and measure neural classifiers in JAX, fast.

Everything public is importable from here, and imported on first use: ``advjax --help`` answers
without loading JAX.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from advjax._faces import lazy

if TYPE_CHECKING:
    from advjax.answers import as_model as as_model
    from advjax.answers import example_keys as example_keys
    from advjax.attacks import *
    from advjax.balls import L0 as L0
    from advjax.balls import L1 as L1
    from advjax.balls import L2 as L2
    from advjax.balls import Ball as Ball
    from advjax.balls import Linf as Linf
    from advjax.data import Augment as Augment
    from advjax.data import Dataset as Dataset
    from advjax.data import load as load
    from advjax.defences import *
    from advjax.evaluation import Accuracy as Accuracy
    from advjax.evaluation import Curve as Curve
    from advjax.evaluation import Evaluation as Evaluation
    from advjax.evaluation import Shares as Shares
    from advjax.evaluation import TransferMatrix as TransferMatrix
    from advjax.evaluation import attack_accuracy as attack_accuracy
    from advjax.evaluation import clopper_pearson as clopper_pearson
    from advjax.evaluation import evaluate as evaluate
    from advjax.evaluation import robustness_curve as robustness_curve
    from advjax.evaluation import success_over_draws as success_over_draws
    from advjax.evaluation import transfer_matrix as transfer_matrix
    from advjax.evaluation import wilson as wilson
    from advjax.goals import Misclassify as Misclassify
    from advjax.goals import Target as Target
    from advjax.goals import Undetected as Undetected
    from advjax.losses import cross_entropy as cross_entropy
    from advjax.losses import dlr as dlr
    from advjax.losses import kl_divergence as kl_divergence
    from advjax.losses import margin as margin
    from advjax.losses import targeted_dlr as targeted_dlr
    from advjax.models import Classifier as Classifier
    from advjax.models import External as External
    from advjax.models import Heads as Heads
    from advjax.models import PerExample as PerExample
    from advjax.models import ReverseGradient as ReverseGradient
    from advjax.models import Transformed as Transformed
    from advjax.models import create as create
    from advjax.models import from_sklearn as from_sklearn
    from advjax.models import from_torch as from_torch
    from advjax.models import init as init
    from advjax.models import load_torch as load_torch
    from advjax.models import reverse_gradient as reverse_gradient
    from advjax.pytrees import per_example as per_example
    from advjax.pytrees import pytree as pytree
    from advjax.pytrees import replace as replace
    from advjax.pytrees import static as static
    from advjax.training import Training as Training
    from advjax.training import fit as fit
    from advjax.training import load_classifier as load_classifier
    from advjax.training import retrain as retrain
    from advjax.training.objectives import *
    from advjax.types import Apply as Apply
    from advjax.types import Aux as Aux
    from advjax.types import Goal as Goal
    from advjax.types import Model as Model
    from advjax.types import Objective as Objective
    from advjax.types import Record as Record

try:
    __version__ = version("advjax")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

__getattr__, __dir__ = lazy(__name__, "__version__")
