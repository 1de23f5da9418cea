"""Rows of the contract's table: attacks made to transfer, and images with 256 levels."""

from collections.abc import Callable

from advjax import L2, PGD, Linf
from advjax.attacks._iterate import Attack
from advjax.attacks.lattice import Lattice
from advjax.attacks.transfer import SIFGSM, TIFGSM

ROWS: dict[str, Callable[[], Attack]] = {
    "si_di_ni_linf": lambda: SIFGSM(ball=Linf(0.2), steps=3, scales=2, diversity=0.7, smallest=0.5),
    "ti_l2": lambda: TIFGSM(ball=L2(0.6), steps=3, momentum=0.5),
    "lattice_linf": lambda: Lattice(PGD(ball=Linf(0.2), steps=3)),
}
