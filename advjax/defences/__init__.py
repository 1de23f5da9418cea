"""Defences on the side of the model: ``model -> model``, with the attack that breaks each."""

from advjax import _faces
from advjax.defences.detectors import FeatureSqueezing as FeatureSqueezing
from advjax.defences.detectors import KernelDensity as KernelDensity
from advjax.defences.detectors import Mahalanobis as Mahalanobis
from advjax.defences.detectors import Roc as Roc
from advjax.defences.detectors import WithDetector as WithDetector
from advjax.defences.detectors import roc as roc
from advjax.defences.detectors import threshold_at as threshold_at
from advjax.defences.detectors import undetected_target as undetected_target
from advjax.defences.interval_bounds import certified as certified
from advjax.defences.interval_bounds import worst_margins as worst_margins
from advjax.defences.jump_relu import JumpReLU as JumpReLU
from advjax.defences.jump_relu import jump_relu as jump_relu
from advjax.defences.self_ensemble import NoisyConvolutions as NoisyConvolutions
from advjax.defences.self_ensemble import RandomSelfEnsemble as RandomSelfEnsemble
from advjax.defences.smoothing import ABSTAIN as ABSTAIN
from advjax.defences.smoothing import Certificate as Certificate
from advjax.defences.smoothing import Smoothed as Smoothed
from advjax.defences.transforms import JPEG as JPEG
from advjax.defences.transforms import BitDepth as BitDepth
from advjax.defences.transforms import MedianFilter as MedianFilter
from advjax.defences.transforms import PixelDropout as PixelDropout
from advjax.defences.transforms import Preprocessed as Preprocessed
from advjax.defences.transforms import TotalVariation as TotalVariation

_faces.declare(__name__)
