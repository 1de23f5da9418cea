"""advjax: attack, harden and measure neural classifiers in JAX, fast.

Everything public is importable from here, and imported on first use.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advjax.attacks import (
        BIM,
        EOT,
        FGSM,
        MIM,
        PGD,
        Attack,
        Restarts,
        Targeted,
        WorstOf,
        auto_loop,
        device_loop,
        host_loop,
        least_likely_target,
        random_target,
    )
    from advjax.balls import L0, L1, L2, Ball, Linf
    from advjax.data import Augment, Dataset, load
    from advjax.evaluation import (
        Accuracy,
        Curve,
        Evaluation,
        attack_accuracy,
        clopper_pearson,
        evaluate,
        robustness_curve,
        wilson,
    )
    from advjax.losses import cross_entropy, margin
    from advjax.models import (
        Classifier,
        PerExample,
        create,
        from_torch,
        init,
        load_torch,
    )
    from advjax.training import Madry, Standard, Training, fit, load_classifier
    from advjax.types import (
        Apply,
        Aux,
        Model,
        Objective,
        Record,
        as_model,
        example_keys,
        pytree,
        replace,
        static,
    )

try:
    __version__ = version("advjax")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

# Nothing is imported until it is used: ``advjax --help`` answers without loading JAX.
_LAZY = {
    "advjax.attacks": (
        "BIM",
        "EOT",
        "FGSM",
        "MIM",
        "PGD",
        "Attack",
        "Restarts",
        "Targeted",
        "WorstOf",
        "auto_loop",
        "device_loop",
        "host_loop",
        "least_likely_target",
        "random_target",
    ),
    "advjax.balls": ("L0", "L1", "L2", "Ball", "Linf"),
    "advjax.losses": ("cross_entropy", "margin"),
    "advjax.types": (
        "Apply",
        "Aux",
        "Model",
        "Objective",
        "Record",
        "as_model",
        "example_keys",
        "pytree",
        "replace",
        "static",
    ),
    "advjax.data": ("Augment", "Dataset", "load"),
    "advjax.evaluation": (
        "Accuracy",
        "Curve",
        "Evaluation",
        "attack_accuracy",
        "clopper_pearson",
        "evaluate",
        "robustness_curve",
        "wilson",
    ),
    "advjax.models": (
        "Classifier",
        "PerExample",
        "create",
        "from_torch",
        "init",
        "load_torch",
    ),
    "advjax.training": ("Madry", "Standard", "Training", "fit", "load_classifier"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'advjax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "BIM",
    "EOT",
    "FGSM",
    "L0",
    "L1",
    "L2",
    "MIM",
    "PGD",
    "Accuracy",
    "Apply",
    "Attack",
    "Augment",
    "Aux",
    "Ball",
    "Classifier",
    "Curve",
    "Dataset",
    "Evaluation",
    "Linf",
    "Madry",
    "Model",
    "Objective",
    "PerExample",
    "Record",
    "Restarts",
    "Standard",
    "Targeted",
    "Training",
    "WorstOf",
    "__version__",
    "as_model",
    "attack_accuracy",
    "auto_loop",
    "clopper_pearson",
    "create",
    "cross_entropy",
    "device_loop",
    "evaluate",
    "example_keys",
    "fit",
    "from_torch",
    "host_loop",
    "init",
    "least_likely_target",
    "load",
    "load_classifier",
    "load_torch",
    "margin",
    "pytree",
    "random_target",
    "replace",
    "robustness_curve",
    "static",
    "wilson",
]
