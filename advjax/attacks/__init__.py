"""Attacks: one idea per file, composed, never subclassed."""

from advjax.attacks.core.driver import device_loop, host_loop
from advjax.types import Attack, auto_loop
from advjax.attacks.apgd import APGD
from advjax.attacks.autoattack import AutoAttack
from advjax.attacks.boundary import Boundary
from advjax.attacks.bpda import bpda
from advjax.attacks.carlini_wagner import CarliniWagner
from advjax.attacks.carlini_wagner_l0 import CarliniWagnerL0
from advjax.attacks.carlini_wagner_linf import CarliniWagnerLinf
from advjax.attacks.compose import (
    EOT,
    Restarts,
    Targeted,
    WorstOf,
    every_target,
    least_likely_target,
    random_target,
)
from advjax.attacks.ddn import DDN
from advjax.attacks.deepfool import DeepFool
from advjax.attacks.ead import EAD
from advjax.attacks.fab import FAB
from advjax.attacks.flow import Flow
from advjax.attacks.fmn import FMN
from advjax.attacks.hop_skip_jump import HopSkipJump
from advjax.attacks.lattice import Lattice
from advjax.attacks.minimal_norm import MinimalNorm
from advjax.attacks.nes import NES
from advjax.attacks.one_pixel import OnePixel
from advjax.attacks.core.oracle import Labels, Scores
from advjax.attacks.patch import Patch, train_patch
from advjax.attacks.penalised import Penalised
from advjax.attacks.pgd import BIM, FGSM, MIM, PGD
from advjax.attacks.jsma import JSMA
from advjax.attacks.sigma_zero import SigmaZero
from advjax.attacks.simba import SimBA
from advjax.attacks.spatial import Spatial
from advjax.attacks.spsa import SPSA
from advjax.attacks.square import Square
from advjax.attacks.substitute import Substitute, train_substitute
from advjax.attacks.transfer import DIFGSM, NIFGSM, SIFGSM, TIFGSM, TransferFGSM
from advjax.attacks.transferred import Transferred
from advjax.attacks.universal import Universal, train_universal, train_universal_deepfool

__all__ = [
    "APGD",
    "BIM",
    "DDN",
    "DIFGSM",
    "EAD",
    "EOT",
    "FAB",
    "FGSM",
    "FMN",
    "JSMA",
    "MIM",
    "NES",
    "NIFGSM",
    "PGD",
    "SIFGSM",
    "SPSA",
    "TIFGSM",
    "Attack",
    "AutoAttack",
    "Boundary",
    "CarliniWagner",
    "CarliniWagnerL0",
    "CarliniWagnerLinf",
    "DeepFool",
    "Flow",
    "HopSkipJump",
    "Labels",
    "Lattice",
    "MinimalNorm",
    "OnePixel",
    "Patch",
    "Penalised",
    "Restarts",
    "Scores",
    "SigmaZero",
    "SimBA",
    "Spatial",
    "Square",
    "Substitute",
    "Targeted",
    "TransferFGSM",
    "Transferred",
    "Universal",
    "WorstOf",
    "auto_loop",
    "bpda",
    "device_loop",
    "every_target",
    "host_loop",
    "least_likely_target",
    "random_target",
    "train_patch",
    "train_substitute",
    "train_universal",
    "train_universal_deepfool",
]
