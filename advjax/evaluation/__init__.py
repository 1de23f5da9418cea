"""Measuring robustness: accuracies with intervals, curves, pictures, reports."""

from advjax.evaluation.curves import Curve, robustness_curve
from advjax.evaluation.draws import Shares, success_over_draws
from advjax.evaluation.evaluate import attack_accuracy, evaluate
from advjax.evaluation.result import AttackResult, Evaluation
from advjax.evaluation.runner import attack_key
from advjax.evaluation.statistics import Accuracy, clopper_pearson, wilson, wilson_over_draws
from advjax.evaluation.transfer import TransferMatrix, transfer_matrix

__all__ = [
    "Accuracy",
    "AttackResult",
    "Curve",
    "Evaluation",
    "Shares",
    "TransferMatrix",
    "attack_accuracy",
    "attack_key",
    "clopper_pearson",
    "evaluate",
    "robustness_curve",
    "success_over_draws",
    "transfer_matrix",
    "wilson",
    "wilson_over_draws",
]
