"""Defences on the side of the model: ``model -> model``, with the attack that breaks each."""

from advjax.defences.detectors import (
    FeatureSqueezing,
    Mahalanobis,
    Roc,
    WithDetector,
    roc,
    threshold_at,
    undetected_target,
)
from advjax.defences.interval_bounds import bounds, certified, worst_margins
from advjax.defences.jump_relu import JumpReLU, jump_relu
from advjax.defences.self_ensemble import NoisyConvolutions, RandomSelfEnsemble
from advjax.defences.smoothing import ABSTAIN, Certificate, Smoothed
from advjax.defences.transforms import (
    JPEG,
    BitDepth,
    MedianFilter,
    Preprocessed,
    TotalVariation,
)

__all__ = [
    "ABSTAIN",
    "BitDepth",
    "Certificate",
    "FeatureSqueezing",
    "JPEG",
    "JumpReLU",
    "Mahalanobis",
    "MedianFilter",
    "NoisyConvolutions",
    "Preprocessed",
    "RandomSelfEnsemble",
    "Roc",
    "Smoothed",
    "TotalVariation",
    "WithDetector",
    "bounds",
    "certified",
    "jump_relu",
    "roc",
    "threshold_at",
    "undetected_target",
    "worst_margins",
]
