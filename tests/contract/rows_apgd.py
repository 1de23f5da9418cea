"""APGD's rows of the table in ``test_attacks.py``."""

from advjax import L1, L2, Linf
from advjax.attacks.acg import ACG
from advjax.attacks.apgd import APGD
from advjax.attacks.autoattack import AutoAttack, Version
from advjax.losses import dlr

# Every kind of part, fewer of each.
SHORT = Version(
    (("apgd-ce", 1), ("apgd-dlr", 1), ("apgd-t", 1), ("fab", 1), ("fab-t", 1), ("square", 4)),
    steps=4,
)

ROWS = {
    "apgd_linf_dlr": lambda: APGD(ball=Linf(0.1), steps=8, loss=dlr, until_success=False),
    "apgd_l2_rank": lambda: APGD(ball=L2(0.6), steps=8, rank=1),
    "autoattack_linf": lambda: AutoAttack(ball=Linf(0.1), version=SHORT),
    "apgd_l1_shrink": lambda: APGD(ball=L1(2.0), steps=10, shrink=True),
    "acg_linf": lambda: ACG(ball=Linf(0.1), steps=8),
}
