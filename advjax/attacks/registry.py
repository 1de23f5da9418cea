"""What attacks there are: the table that the documentation and the command line are made of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from advjax import attacks
from advjax.attacks import Attack
from advjax.balls import L0, L1, L2, Ball, Linf

Oracle = Literal["gradient", "scores", "labels"]
_BALLS: dict[str, Callable[..., Ball]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One attack of the suite.

    Attributes:
      name: what ``advjax`` exports.
      family: the heading it stands under.
      norms: of ``linf``, ``l2``, ``l1``, ``l0``; empty where no norm limits it.
      targeted: whether it can aim at a class.
      oracle: what it sees of the model.
      source: paper, and where in it.
      cost: passes per example; n is the number of steps.
      make: the attack on a ball, with its defaults; of what is trained, the untrained one.
    """

    name: str
    family: str
    norms: tuple[str, ...]
    targeted: bool
    oracle: Oracle
    source: str
    cost: str
    make: Callable[[Ball], Attack]


ALL = ("linf", "l2", "l1", "l0")
FIXED, LEAST, SPARSE = "Fixed budget", "Minimum norm", "Jacobian and sparse"
TRANSFER, BLACK, SHAPE = "Transfer", "Black box", "Spatial"
TRAINED = "Trained once for all images"
_GREY = np.full((4, 4, 1), 0.5, np.float32)  # what is there before training


def _of(name: str, **fields: Any) -> Callable[[Ball], Attack]:
    return lambda ball: getattr(attacks, name)(ball=ball, **fields)


def _wrapped(name: str, **fields: Any) -> Callable[[Ball], Attack]:
    return lambda ball: getattr(attacks, name)(attacks.PGD(ball=ball), **fields)


ENTRIES = (
    Entry(
        "FGSM", FIXED, ALL, True, "gradient",
        "Goodfellow et al. 2015, section 4", "1 + 1", _of("FGSM"),
    ),
    Entry(
        "BIM", FIXED, ALL, True, "gradient",
        "Kurakin et al. 2017, section 2.2", "n + n", _of("BIM"),
    ),
    Entry(
        "PGD", FIXED, ALL, True, "gradient",
        "Madry et al. 2018, section 2.1", "n + n", _of("PGD"),
    ),
    Entry(
        "APGD", FIXED, ("linf", "l2", "l1"), True, "gradient",
        "Croce & Hein 2020, algorithm 1; 2021, algorithm 1 (L1)", "n + n", _of("APGD"),
    ),
    Entry(
        "AutoAttack", FIXED, ("linf", "l2", "l1"), False, "gradient",
        "Croce & Hein 2020, section 6", "up to 1,900 + 1,900, then 5,000 + 0 for what stands",
        _of("AutoAttack"),
    ),
    Entry(
        "Square", BLACK, ("linf", "l2", "l1"), True, "scores",
        "Andriushchenko et al. 2020, algorithms 1 to 3", "up to n + 0", _of("Square"),
    ),
    Entry(
        "MIM", TRANSFER, ALL, True, "gradient",
        "Dong et al. 2018, algorithm 1", "n + n", _of("MIM"),
    ),
    Entry(
        "NIFGSM", TRANSFER, ALL, True, "gradient",
        "Lin et al. 2020, section 3.1", "n + n", _of("NIFGSM"),
    ),
    Entry(
        "SIFGSM", TRANSFER, ALL, True, "gradient",
        "Lin et al. 2020, section 3.2", "5n + 5n", _of("SIFGSM"),
    ),
    Entry(
        "DIFGSM", TRANSFER, ALL, True, "gradient",
        "Xie et al. 2019, section 3.2", "n + n", _of("DIFGSM"),
    ),
    Entry(
        "TIFGSM", TRANSFER, ALL, True, "gradient",
        "Dong et al. 2019, section 3.2; kernel at most a quarter of the image", "n + n",
        _of("TIFGSM"),
    ),
    Entry(
        "DeepFool", LEAST, ("linf", "l2"), True, "gradient",
        "Moosavi-Dezfooli et al. 2016, algorithm 2", "up to 2n + (K - 1) n", _of("DeepFool"),
    ),
    Entry(
        "CarliniWagner", LEAST, ("l2",), True, "gradient",
        "Carlini & Wagner 2017, section VI-A", "up to 9n + 9n", _of("CarliniWagner"),
    ),
    Entry(
        "CarliniWagnerLinf", LEAST, ("linf",), True, "gradient",
        "Carlini & Wagner 2017, section VI-C", "up to n + n", _of("CarliniWagnerLinf"),
    ),
    Entry(
        "CarliniWagnerL0", LEAST, ("l0",), True, "gradient",
        "Carlini & Wagner 2017, section VI-B", "up to n + n", _of("CarliniWagnerL0"),
    ),
    Entry(
        "EAD", LEAST, ("l1",), True, "gradient",
        "Chen et al. 2018, algorithm 1", "up to 18n + 9n", _of("EAD"),
    ),
    Entry(
        "DDN", LEAST, ("l2",), True, "gradient",
        "Rony et al. 2019, algorithm 1", "n + n", _of("DDN"),
    ),
    Entry(
        "FMN", LEAST, ALL, True, "gradient",
        "Pintor et al. 2021, algorithm 1", "n + n", _of("FMN"),
    ),
    Entry(
        "FAB", LEAST, ("linf", "l2", "l1"), True, "gradient",
        "Croce & Hein 2020 (FAB), algorithm 1 without its final search",
        "n + (K - 1) n, with a rank n + n", _of("FAB"),
    ),
    Entry(
        "SigmaZero", LEAST, ("l0",), True, "gradient",
        "Cina et al. 2025, algorithm 1", "n + n", _of("SigmaZero"),
    ),
    Entry(
        "MinimalNorm", LEAST, ALL, True, "gradient",
        "bisection over eps around any attack with a budget", "12 times the attack's",
        _wrapped("MinimalNorm"),
    ),
    Entry(
        "Penalised", LEAST, ("linf", "l2", "l1"), True, "gradient",
        "Adam on an additive change with a penalty on its size", "n + n", _of("Penalised"),
    ),
    Entry(
        "JSMA", SPARSE, ("l0",), True, "gradient",
        "Papernot et al. 2016, algorithms 2 and 3", "up to n + n a target, on logits n + 2n",
        _of("JSMA"),
    ),
    Entry(
        "OnePixel", SPARSE, ("l0",), True, "scores",
        "Su et al. 2019, section III", "400 (n + 1) + 0", _of("OnePixel"),
    ),
    Entry(
        "NES", BLACK, ALL, True, "scores",
        "Ilyas et al. 2018, algorithm 1", "up to the queries given", _of("NES"),
    ),
    Entry(
        "SPSA", BLACK, ALL, True, "scores",
        "Uesato et al. 2018, algorithm 1", "up to the queries given", _of("SPSA"),
    ),
    Entry(
        "SimBA", BLACK, ALL, True, "scores",
        "Guo et al. 2019, algorithm 1", "up to the queries given", _of("SimBA"),
    ),
    Entry(
        "Boundary", BLACK, ("l2",), True, "labels",
        "Brendel et al. 2018, algorithm 1", "up to the queries given", _of("Boundary"),
    ),
    Entry(
        "HopSkipJump", BLACK, ("linf", "l2"), True, "labels",
        "Chen et al. 2020, algorithm 2", "up to the queries given", _of("HopSkipJump"),
    ),
    Entry(
        "Spatial", SHAPE, (), True, "scores",
        "Engstrom et al. 2019, section 3.2", "up to 125 + 0", _of("Spatial"),
    ),
    Entry(
        "Flow", SHAPE, (), True, "gradient",
        "Xiao et al. 2018, section 3.2", "n + n", _of("Flow"),
    ),
    Entry(
        "Patch", TRAINED, (), True, "scores",
        "Brown et al. 2017, section 2", "none; train_patch once", _of("Patch", pixels=_GREY),
    ),
    Entry(
        "Universal", TRAINED, ALL, True, "scores",
        "Moosavi-Dezfooli et al. 2017; train_universal: Shafahi et al. 2020",
        "none; train_universal or train_universal_deepfool once", _of("Universal", delta=0.0),
    ),
)  # fmt: skip


def names() -> tuple[str, ...]:
    """The attacks' names."""
    return tuple(entry.name for entry in ENTRIES)


@functools.cache
def _by_name() -> dict[str, Entry]:
    return {entry.name: entry for entry in ENTRIES}


def entry(name: str) -> Entry:
    """The attack of that name.

    Raises:
      ValueError: if there is none.
    """
    if name not in _by_name():
        raise ValueError(f"unknown attack {name!r}; known are {', '.join(names())}")
    return _by_name()[name]


def ball_of(norm: str, eps: float = float("inf")) -> Ball:
    """A ball by the name of its norm."""
    if norm not in _BALLS:
        raise ValueError(f"unknown norm {norm!r}; known are {', '.join(_BALLS)}")
    return _BALLS[norm](eps)
