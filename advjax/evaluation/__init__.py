"""Measuring robustness: accuracies with intervals, curves, pictures, reports."""

from advjax.evaluation.curves import Curve, robustness_curve
from advjax.evaluation.evaluate import attack_accuracy, evaluate
from advjax.evaluation.result import AttackResult, Evaluation
from advjax.evaluation.runner import attack_key
from advjax.evaluation.statistics import Accuracy, clopper_pearson, wilson
from advjax.evaluation.transfer import TransferMatrix, transfer_matrix

__all__ = [
    "Accuracy",
    "AttackResult",
    "Curve",
    "Evaluation",
    "TransferMatrix",
    "attack_accuracy",
    "attack_key",
    "clopper_pearson",
    "evaluate",
    "robustness_curve",
    "transfer_matrix",
    "wilson",
]
