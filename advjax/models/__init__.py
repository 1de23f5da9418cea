"""Networks as flax linen modules, and models (callable pytrees) made of them."""

from advjax import _faces
from advjax.models.classifier import Classifier as Classifier
from advjax.models.classifier import PerExample as PerExample
from advjax.models.classifier import init as init
from advjax.models.conv import conv_general_dilated as conv_general_dilated
from advjax.models.external import External as External
from advjax.models.external import from_sklearn as from_sklearn
from advjax.models.heads import Heads as Heads
from advjax.models.heads import ReverseGradient as ReverseGradient
from advjax.models.heads import reverse_gradient as reverse_gradient
from advjax.models.layers import Dropout as Dropout
from advjax.models.pooling import avg_pool as avg_pool
from advjax.models.pooling import max_pool as max_pool
from advjax.models.registry import create as create
from advjax.models.registry import describe as describe
from advjax.models.registry import names as names
from advjax.models.torch_weights import from_torch as from_torch
from advjax.models.torch_weights import load_torch as load_torch
from advjax.models.transformed import Transformed as Transformed

_faces.declare(__name__)
