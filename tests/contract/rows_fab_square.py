"""Rows of the attack table: FAB, DeepFool and Square."""

from advjax import L1, L2, Linf
from advjax.attacks.deepfool import DeepFool
from advjax.attacks.fab import FAB
from advjax.attacks.square import Square

ROWS = {
    "fab_linf": lambda: FAB(ball=Linf(0.2), steps=4),
    "fab_t_l2": lambda: FAB(ball=L2(0.6), steps=4, rank=2, random_start=True),
    "fab_l1_in_chunks": lambda: FAB(ball=L1(2.0), steps=4, chunk=3, until_success=True),
    "deepfool_l2": lambda: DeepFool(ball=L2(0.6), steps=4),
    "deepfool_linf": lambda: DeepFool(ball=Linf(0.2), steps=4, classes=3),
    "square_linf": lambda: Square(ball=Linf(0.05), steps=6),
    "square_l2": lambda: Square(ball=L2(0.3), steps=6),
    "square_l1": lambda: Square(ball=L1(1.0), steps=6, rescale_schedule=True),
}
