"""The query attacks' rows of the table in ``test_attacks.py``."""

from advjax import L2, Linf
from advjax.attacks.boundary import Boundary
from advjax.attacks.hop_skip_jump import HopSkipJump
from advjax.attacks.nes import NES
from advjax.attacks.simba import SimBA
from advjax.attacks.spsa import SPSA

ROWS = {
    "nes_linf": lambda: NES(ball=Linf(0.2), queries=60, samples=10),
    "nes_l2_chunk": lambda: NES(ball=L2(0.6), queries=60, samples=10, chunk=2),
    "spsa_linf": lambda: SPSA(ball=Linf(0.2), queries=60, samples=10, step_size=0.05),
    "simba_linf": lambda: SimBA(ball=Linf(0.2), queries=40),
    "simba_l2_dct": lambda: SimBA(ball=L2(0.6), queries=40, basis="dct"),
    "boundary_l2": lambda: Boundary(ball=L2(), queries=60),
    "boundary_l2_limit": lambda: Boundary(ball=L2(0.6), queries=60),
    "hop_skip_jump_l2": lambda: HopSkipJump(ball=L2(), queries=120, probes=20, chunk=10),
    "hop_skip_jump_linf": lambda: HopSkipJump(ball=Linf(0.2), queries=120, probes=20, chunk=10),
}
