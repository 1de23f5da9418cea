"""Measuring robustness: accuracies with intervals, curves, pictures, reports."""

from advjax import _faces
from advjax.evaluation.curves import Curve as Curve
from advjax.evaluation.curves import robustness_curve as robustness_curve
from advjax.evaluation.draws import Shares as Shares
from advjax.evaluation.draws import success_over_draws as success_over_draws
from advjax.evaluation.evaluate import attack_accuracy as attack_accuracy
from advjax.evaluation.evaluate import evaluate as evaluate
from advjax.evaluation.result import AttackResult as AttackResult
from advjax.evaluation.result import Evaluation as Evaluation
from advjax.evaluation.runner import attack_key as attack_key
from advjax.evaluation.statistics import Accuracy as Accuracy
from advjax.evaluation.statistics import clopper_pearson as clopper_pearson
from advjax.evaluation.statistics import wilson as wilson
from advjax.evaluation.statistics import wilson_over_draws as wilson_over_draws
from advjax.evaluation.transfer import TransferMatrix as TransferMatrix
from advjax.evaluation.transfer import transfer_matrix as transfer_matrix

_faces.declare(__name__)
