"""AutoAttack: the ensemble that robust accuracy is reported with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from advjax.attacks.apgd import APGD
from advjax.attacks.compose import EOT, Restarts, WorstOf
from advjax.attacks.fab import FAB
from advjax.attacks.square import Square
from advjax.balls import L1, L2, Ball, Linf
from advjax.losses import cross_entropy, dlr
from advjax.pytrees import replace
from advjax.types import Attack


@dataclasses.dataclass(frozen=True)
class Version:
    """What an AutoAttack is made of; constants as in the authors' code.

    Attributes:
      parts: in this order, the name of a part and its count: restarts of ``apgd-ce``, ``apgd-dlr``
        and ``fab``; classes, from the runner-up on, of ``apgd-t`` and ``fab-t``; queries of
        ``square``.
      steps: of each APGD and FAB.
      shrink: whether APGD's ball shrinks, ``APGD.shrink``.
      samples: draws of a randomised model per gradient, ``EOT.samples``; None for one plain call.
    """

    parts: tuple[tuple[str, int], ...]
    steps: int = 100
    shrink: bool = False
    samples: int | None = None


STANDARD = Version((("apgd-ce", 1), ("apgd-t", 9), ("fab-t", 9), ("square", 5000)))
STANDARD_L1 = Version((("apgd-ce", 5), ("apgd-t", 5), ("fab-t", 9), ("square", 5000)), shrink=True)
PLUS = Version(
    (
        ("apgd-ce", 5),
        ("apgd-dlr", 5),
        ("fab", 5),
        ("square", 5000),
        ("apgd-t", 9),
        ("fab-t", 9),
    )
)
RAND = Version((("apgd-ce", 1), ("apgd-dlr", 1)), samples=20)

VERSIONS: Mapping[tuple[str, type[Ball]], Version] = MappingProxyType(
    {
        ("standard", Linf): STANDARD,
        ("standard", L2): STANDARD,
        ("standard", L1): STANDARD_L1,
        **{("plus", norm): PLUS for norm in (Linf, L2, L1)},
        **{("rand", norm): RAND for norm in (Linf, L2, L1)},
    }
)


def AutoAttack(*, ball: Ball, version: str | Version = "standard") -> WorstOf:
    """AutoAttack (Croce & Hein 2020, section 6; in L1 Croce & Hein 2021): no setting but eps.

    Each part gets the examples that withstood those before it. With fewer classes than it has
    targets the surplus does nothing.

    Args:
      ball: ``Linf(eps)``, ``L2(eps)`` or ``L1(eps)``.
      version: ``"standard"``; ``"plus"``, with more restarts and the untargeted attacks;
        ``"rand"``, for a randomised model; or a ``Version`` of your own, whose figures are then
        not those of AutoAttack.

    Raises:
      ValueError: on another version or a ball that AutoAttack is not defined for.
    """
    if isinstance(version, str):
        known = sorted({name for name, _ in VERSIONS})
        if version not in known:
            raise ValueError(f"AutoAttack: given version={version!r}; expected one of {known}")
        if (version, type(ball)) not in VERSIONS:
            raise ValueError(f"AutoAttack: given ball={ball!r}; expected Linf, L2 or L1")
        version = VERSIONS[version, type(ball)]
    return WorstOf(
        tuple(part for name, n in version.parts for part in _part(name, n, ball, version))
    )


def _part(name: str, n: int, ball: Ball, version: Version) -> tuple[Attack, ...]:
    steps, ranks = version.steps, range(1, n + 1)
    apgd = APGD(ball=ball, steps=steps, shrink=version.shrink)
    fab = FAB(ball=ball, steps=steps, until_success=True)
    restarts = lambda attack, n: attack if n == 1 else Restarts(attack, n=n)
    match name:
        case "apgd-ce":
            attacks: list[Attack] = [restarts(replace(apgd, loss=cross_entropy), n)]
        case "apgd-dlr":
            attacks = [restarts(replace(apgd, loss=dlr), n)]
        case "apgd-t":
            attacks = [replace(apgd, rank=rank) for rank in ranks]
        case "fab":  # the first run starts at the image
            attacks = [fab]
            if n > 1:
                attacks.append(restarts(replace(fab, random_start=True), n - 1))
        case "fab-t":
            attacks = [replace(fab, rank=rank) for rank in ranks]
        case "square":
            attacks = [Square(ball=ball, steps=n)]
        case _:
            raise ValueError(
                f"AutoAttack: given part {name!r}; expected apgd-ce, apgd-dlr, apgd-t, fab, fab-t "
                "or square"
            )
    if version.samples is not None:
        attacks = [EOT(attack, samples=version.samples) for attack in attacks]
    return tuple(attacks)
