"""Training losses as pytrees: ``objective(keys, apply, params, stats, batch) -> (loss, Aux)``."""

from advjax import _faces
from advjax.training.objectives.awp import AWP as AWP
from advjax.training.objectives.controls import GradientPenalty as GradientPenalty
from advjax.training.objectives.controls import LogitSqueezing as LogitSqueezing
from advjax.training.objectives.domain import DANN as DANN
from advjax.training.objectives.domain import MultiTask as MultiTask
from advjax.training.objectives.domain import dann_factor as dann_factor
from advjax.training.objectives.domain import dann_learning_rate as dann_learning_rate
from advjax.training.objectives.ensemble import EnsembleAdversarial as EnsembleAdversarial
from advjax.training.objectives.free import FreeAT as FreeAT
from advjax.training.objectives.grad_align import GradAlign as GradAlign
from advjax.training.objectives.graph import GraphRegularization as GraphRegularization
from advjax.training.objectives.graph import nearest_neighbours as nearest_neighbours
from advjax.training.objectives.graph import neighbours_from_edges as neighbours_from_edges
from advjax.training.objectives.interval import IBP as IBP
from advjax.training.objectives.madry import Madry as Madry
from advjax.training.objectives.mart import MART as MART
from advjax.training.objectives.neighbours import (
    AdversarialRegularization as AdversarialRegularization,
)
from advjax.training.objectives.standard import Standard as Standard
from advjax.training.objectives.trades import TRADES as TRADES
from advjax.training.objectives.vat import VAT as VAT

_faces.declare(__name__)
