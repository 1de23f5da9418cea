"""Training losses as pytrees: ``objective(keys, apply, params, stats, batch) -> (loss, Aux)``."""

from advjax.training.objectives._shared import smoothed_cross_entropy
from advjax.training.objectives.awp import AWP
from advjax.training.objectives.controls import GradientPenalty, LogitSqueezing
from advjax.training.objectives.domain import DANN, MultiTask, dann_factor, dann_learning_rate
from advjax.training.objectives.ensemble import EnsembleAdversarial
from advjax.training.objectives.free import FreeAT
from advjax.training.objectives.grad_align import GradAlign
from advjax.training.objectives.graph import (
    GraphRegularization,
    nearest_neighbours,
    neighbours_from_edges,
)
from advjax.training.objectives.interval import IBP
from advjax.training.objectives.madry import Madry
from advjax.training.objectives.mart import MART
from advjax.training.objectives.neighbours import AdversarialRegularization
from advjax.training.objectives.standard import Standard
from advjax.training.objectives.trades import TRADES
from advjax.training.objectives.vat import VAT
from advjax.types import Objective

Crafting = Objective  # its name where it crafts its inputs

__all__ = [
    "AWP",
    "AdversarialRegularization",
    "Crafting",
    "DANN",
    "EnsembleAdversarial",
    "FreeAT",
    "GradAlign",
    "GradientPenalty",
    "GraphRegularization",
    "IBP",
    "LogitSqueezing",
    "MART",
    "Madry",
    "MultiTask",
    "Standard",
    "TRADES",
    "VAT",
    "dann_factor",
    "dann_learning_rate",
    "nearest_neighbours",
    "neighbours_from_edges",
    "smoothed_cross_entropy",
]
