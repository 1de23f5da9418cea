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
      make: the attack on a ball, with its defaults or these fields; of what is trained, the
        untrained one.
    """

    name: str
    family: str
    norms: tuple[str, ...]
    targeted: bool
    oracle: Oracle
    source: str
    cost: str
    make: Callable[..., Attack]

    @property
    def limited(self) -> bool:
        """Whether it is run with an eps; ``MinimalNorm`` takes it as a first guess."""
        return self.family not in (LEAST, SPARSE, SHAPE) or self.name == "MinimalNorm"


ALL = ("linf", "l2", "l1", "l0")
_THREE = ("linf", "l2", "l1")
FIXED, LEAST, SPARSE = "Fixed budget", "Minimum norm", "Jacobian and sparse"
TRANSFER, BLACK, SHAPE = "Transfer", "Black box", "Spatial"
TRAINED = "Trained once for all images"
_QUERIES = "up to the queries given"
# What a row's attack needs beside a ball: another attack around which it stands, ...
_WRAPPERS = ("MinimalNorm",)
# ... or what is there before training.
_UNTRAINED: dict[str, dict[str, Any]] = {
    "Patch": {"pixels": np.full((4, 4, 1), 0.5, np.float32)},
    "Universal": {"delta": 0.0},
}


def _row(
    name: str,
    family: str,
    norms: tuple[str, ...],
    source: str,
    cost: str,
    oracle: Oracle = "gradient",
    targeted: bool = True,
) -> Entry:
    def make(ball: Ball, **fields: Any) -> Attack:
        if name in _WRAPPERS:
            fields = {"attack": attacks.PGD(ball=ball), **fields}
        else:
            fields = {"ball": ball, **_UNTRAINED.get(name, {}), **fields}
        made: Attack = getattr(attacks, name)(**fields)
        return made

    return Entry(name, family, norms, targeted, oracle, source, cost, make)


ENTRIES = (
    _row("FGSM", FIXED, ALL, "Goodfellow et al. 2015, section 4", "1 + 1"),
    _row("BIM", FIXED, ALL, "Kurakin et al. 2017, section 2.2", "n + n"),
    _row("PGD", FIXED, ALL, "Madry et al. 2018, section 2.1", "n + n"),
    _row("APGD", FIXED, _THREE, "Croce & Hein 2020, algorithm 1; 2021, algorithm 1 (L1)", "n + n"),
    _row("ACG", FIXED, ("linf", "l2"), "Yamamura et al. 2022, algorithm 1", "up to n + n"),
    _row("AutoAttack", FIXED, _THREE, "Croce & Hein 2020, section 6",
         "up to 1,900 + 1,900, then 5,000 + 0 for what stands", targeted=False),
    _row("Square", BLACK, _THREE, "Andriushchenko et al. 2020, algorithms 1 to 3", "up to n + 0",
         "scores"),
    _row("MIM", TRANSFER, ALL, "Dong et al. 2018, algorithm 1", "n + n"),
    _row("NIFGSM", TRANSFER, ALL, "Lin et al. 2020, section 3.1", "n + n"),
    _row("SIFGSM", TRANSFER, ALL, "Lin et al. 2020, section 3.2", "5n + 5n"),
    _row("DIFGSM", TRANSFER, ALL, "Xie et al. 2019, section 3.2", "n + n"),
    _row("TIFGSM", TRANSFER, ALL,
         "Dong et al. 2019, section 3.2; kernel at most a quarter of the image", "n + n"),
    _row("DeepFool", LEAST, ("linf", "l2"), "Moosavi-Dezfooli et al. 2016, algorithm 2",
         "up to 2n + (K - 1) n"),
    _row("CarliniWagner", LEAST, ("l2",), "Carlini & Wagner 2017, section VI-A", "up to 9n + 9n"),
    _row("CarliniWagnerLinf", LEAST, ("linf",), "Carlini & Wagner 2017, section VI-C",
         "up to n + n"),
    _row("CarliniWagnerL0", LEAST, ("l0",), "Carlini & Wagner 2017, section VI-B", "up to n + n"),
    _row("EAD", LEAST, ("l1",), "Chen et al. 2018, algorithm 1", "up to 18n + 9n"),
    _row("DDN", LEAST, ("l2",), "Rony et al. 2019, algorithm 1", "n + n"),
    _row("FMN", LEAST, ALL, "Pintor et al. 2021, algorithm 1", "n + n"),
    _row("FAB", LEAST, _THREE, "Croce & Hein 2020 (FAB), algorithm 1 without its final search",
         "n + (K - 1) n, with a rank n + n"),
    _row("SigmaZero", LEAST, ("l0",), "Cina et al. 2025, algorithm 1", "n + n"),
    _row("MinimalNorm", LEAST, ALL, "bisection over eps around any attack with a budget",
         "12 times the attack's"),
    _row("Penalised", LEAST, _THREE, "Adam on an additive change with a penalty on its size",
         "n + n"),
    _row("JSMA", SPARSE, ("l0",), "Papernot et al. 2016, algorithms 2 and 3",
         "up to n + n a target, on logits n + 2n"),
    _row("OnePixel", SPARSE, ("l0",), "Su et al. 2019, section III", "400 (n + 1) + 0", "scores"),
    _row("NES", BLACK, ALL, "Ilyas et al. 2018, algorithm 1", _QUERIES, "scores"),
    _row("SPSA", BLACK, ALL, "Uesato et al. 2018, algorithm 1", _QUERIES, "scores"),
    _row("SimBA", BLACK, ALL, "Guo et al. 2019, algorithm 1", _QUERIES, "scores"),
    _row("Boundary", BLACK, ("l2",), "Brendel et al. 2018, algorithm 1", _QUERIES, "labels"),
    _row("HopSkipJump", BLACK, ("linf", "l2"), "Chen et al. 2020, algorithm 2", _QUERIES, "labels"),
    _row("Spatial", SHAPE, (), "Engstrom et al. 2019, section 3.2", "up to 125 + 0", "scores"),
    _row("Flow", SHAPE, (), "Xiao et al. 2018, section 3.2", "n + n"),
    _row("Patch", TRAINED, (), "Brown et al. 2017, section 2", "none; train_patch once", "scores"),
    _row("Universal", TRAINED, ALL,
         "Moosavi-Dezfooli et al. 2017; train_universal: Shafahi et al. 2020",
         "none; train_universal or train_universal_deepfool once", "scores"),
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
