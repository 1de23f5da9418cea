"""Rows of the contract's table: attacks made to transfer, and images with 256 levels."""

from collections.abc import Callable

import jax.numpy as jnp

from advjax import L2, PGD, Attack, Linf
from advjax.attacks.lattice import Lattice
from advjax.attacks.transfer import SIFGSM, TIFGSM
from advjax.attacks.transferred import Transferred


def source(x):
    """As many classes as the model it stands for, which it resembles in nothing else.

    What Transferred says of gradients is the source's: on the table's awkward images, where the
    model has none, it has none either.
    """
    flat = x.reshape(x.shape[0], -1)
    if flat.shape[1] == 6:
        return 0 * flat[:, :2] + jnp.array([[1.0, 0.0]])
    weights = jnp.sin(7 * jnp.arange(flat.shape[1] * 5.0)).reshape(-1, 5)
    return flat @ weights


ROWS: dict[str, Callable[[], Attack]] = {
    "si_di_ni_linf": lambda: SIFGSM(ball=Linf(0.2), steps=3, scales=2, diversity=0.7, smallest=0.5),
    "ti_l2": lambda: TIFGSM(ball=L2(0.6), steps=3, momentum=0.5),
    "lattice_linf": lambda: Lattice(PGD(ball=Linf(0.2), steps=3)),
    "transferred": lambda: Transferred(PGD(ball=Linf(0.2), steps=3), source=source, levels=256),
}
