"""Rows of the attacks table: what moves pixels, and what is one thing for all images."""

import numpy as np

from advjax import Linf
from advjax.attacks.flow import Flow
from advjax.attacks.patch import Patch
from advjax.attacks.spatial import Spatial
from advjax.attacks.universal import Universal

ROWS = {
    "spatial_grid": lambda: Spatial(shifts=2, rotations=3),
    "spatial_draws": lambda: Spatial(draws=5, early_stop=False),
    "flow": lambda: Flow(steps=4, max_shift=1.5),
    "patch": lambda: Patch(pixels=np.ones((2, 2, 1)), scale=(0.5, 0.9)),
    "universal": lambda: Universal(delta=0.15, ball=Linf(0.2)),
}
