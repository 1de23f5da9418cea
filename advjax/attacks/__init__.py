"""Attacks: one idea per file, composed, never subclassed."""

from advjax.attacks._iterate import Attack, auto_loop, device_loop, host_loop
from advjax.attacks.compose import (
    EOT,
    Restarts,
    Targeted,
    WorstOf,
    least_likely_target,
    random_target,
)
from advjax.attacks.pgd import BIM, FGSM, MIM, PGD

__all__ = [
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
]
