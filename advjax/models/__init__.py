"""Networks as flax linen modules, and models (callable pytrees) made of them."""

from advjax.models.classifier import Classifier, PerExample, init
from advjax.models.conv import conv_general_dilated
from advjax.models.external import External, from_sklearn
from advjax.models.heads import Heads, ReverseGradient, reverse_gradient
from advjax.models.layers import Dropout
from advjax.models.pooling import avg_pool, max_pool
from advjax.models.registry import create, describe, names
from advjax.models.torch_weights import (
    from_torch,
    load_torch,
)
from advjax.models.transformed import Transformed

__all__ = [
    "Classifier",
    "Dropout",
    "External",
    "Heads",
    "PerExample",
    "ReverseGradient",
    "Transformed",
    "avg_pool",
    "conv_general_dilated",
    "create",
    "describe",
    "from_sklearn",
    "from_torch",
    "init",
    "load_torch",
    "max_pool",
    "names",
    "reverse_gradient",
]
