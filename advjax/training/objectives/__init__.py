"""Training losses as pytrees: ``objective(keys, apply, params, stats, batch) -> (loss, Aux)``."""

from advjax.training.objectives._shared import smoothed_cross_entropy
from advjax.training.objectives.crafting import Crafting
from advjax.training.objectives.madry import Madry
from advjax.training.objectives.standard import Standard

__all__ = ["Crafting", "Madry", "Standard", "smoothed_cross_entropy"]
