"""Minimum-norm attacks' rows of the table in ``test_attacks.py``."""

from advjax import L0, L1, L2, PGD, Linf
from advjax.attacks.ddn import DDN
from advjax.attacks.fmn import FMN
from advjax.attacks.minimal_norm import MinimalNorm
from advjax.attacks.sigma_zero import SigmaZero
from advjax.attacks.square import Square

ROWS = {
    "ddn_l2": lambda: DDN(ball=L2(), steps=6),
    "ddn_l2_in_box": lambda: DDN(ball=L2(), steps=6, in_box=True, levels=None),
    "fmn_l2": lambda: FMN(ball=L2(), steps=6),
    "fmn_linf_limit": lambda: FMN(ball=Linf(0.2), steps=6),
    "fmn_l1": lambda: FMN(ball=L1(), steps=6),
    "fmn_l0": lambda: FMN(ball=L0(), steps=6),
    "sigma_zero_l0": lambda: SigmaZero(ball=L0(), steps=8),
    "minimal_norm_linf": lambda: MinimalNorm(PGD(ball=Linf(0.1), steps=3), searches=4),
    "minimal_norm_square": lambda: MinimalNorm(Square(ball=L2(0.3), steps=6), searches=3),
}
