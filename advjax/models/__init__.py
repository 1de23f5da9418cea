"""Networks as flax linen modules, and models (callable pytrees) made of them."""

from advjax.models.classifier import Classifier, PerExample, init
from advjax.models.conv import conv_general_dilated
from advjax.models.layers import Dropout
from advjax.models.pooling import avg_pool, max_pool
from advjax.models.registry import create, describe, names

__all__ = [
    "Classifier",
    "Dropout",
    "PerExample",
    "avg_pool",
    "conv_general_dilated",
    "create",
    "describe",
    "init",
    "max_pool",
    "names",
]
