"""APGD's rows of the table in ``test_attacks.py``."""

from advjax import L1, L2, Linf
from advjax.attacks.apgd import APGD
from advjax.losses import dlr

ROWS = {
    "apgd_linf_dlr": lambda: APGD(ball=Linf(0.1), steps=8, loss=dlr, until_success=False),
    "apgd_l2_rank": lambda: APGD(ball=L2(0.6), steps=8, rank=1),
    "apgd_l1_shrink": lambda: APGD(ball=L1(2.0), steps=10, shrink=True),
}
