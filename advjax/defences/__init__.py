"""Defences on the side of the model: ``model -> model``, with the attack that breaks each."""

from advjax.defences.detectors import (
    FeatureSqueezing,
    KernelDensity,
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
    PixelDropout,
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
    "KernelDensity",
    "Mahalanobis",
    "MedianFilter",
    "NoisyConvolutions",
    "PixelDropout",
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
