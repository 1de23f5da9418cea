"""Accuracy against the size of the perturbation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from advjax.evaluation.draws import DRAWS
from advjax.evaluation.runner import Progress, Runner
from advjax.evaluation.statistics import Accuracy
from advjax.types import Attack


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Accuracy at each eps.

    Attributes:
      eps: E radii, ascending.
      accuracy: E accuracies with intervals; at eps 0 the clean one.
      standing: ``[E, N]`` bool, which examples are right when clean and under the attack.
    """

    eps: tuple[float, ...]
    accuracy: tuple[Accuracy, ...]
    standing: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """``eps`` and ``accuracy``, for JSON."""
        return {"eps": list(self.eps), "accuracy": [a.to_dict() for a in self.accuracy]}


def robustness_curve(
    model: Any,
    data: Any,
    attack: Attack | Callable[[float], Attack],
    eps: Sequence[float] | np.ndarray,
    *,
    key: jax.Array,
    batch_size: int = 256,
    draws: int = DRAWS,
    level: float = 0.95,
    progress: Progress | None = None,
    devices: Sequence[Any] | None = None,
) -> Curve:
    """Accuracy under one attack at each of several eps; one compilation for all of them.

    Every eps uses the same random draws, so differences between them are not chance. The clean
    images are judged once. eps 0 is the clean accuracy and costs nothing.

    Args:
      model: as for ``evaluate``, like the arguments not listed here.
      data: as for ``evaluate``.
      attack: an attack, whose eps and step size are scaled, or a function ``eps -> attack``.
      eps: radii >= 0, in any order; each counts once.
      key: one ``jax.random.key``; consumed.

    Raises:
      ValueError: for a negative or missing eps, or an attack that has not one single eps > 0 to be
        scaled; otherwise as for ``evaluate``.
    """
    radii = sorted({float(e) for e in np.asarray(eps, np.float64).reshape(-1)})
    if not radii or not (np.isfinite(radii).all() and radii[0] >= 0):
        raise ValueError(f"eps: given {list(np.ravel(eps))}; expected numbers >= 0")
    at = _scaled_to(attack) if isinstance(attack, Attack) else attack
    run = Runner.start(model, data, key, batch_size, draws, progress, devices)
    correct = run.predict()["prediction"] == run.y
    standing = np.stack([correct] * len(radii))
    for row, radius in zip(standing, radii, strict=True):
        if radius > 0:
            made = at(radius)
            run.check_attack(f"eps {radius:g}", made)
            found = run.attack("curve", made, correct, keep=0, said=f"eps {radius:g}")
            row &= ~(found.success | found.invalid)
    accuracy = tuple(Accuracy(int(row.sum()), len(row), level) for row in standing)
    return Curve(eps=tuple(radii), accuracy=accuracy, standing=standing)


def _scaled_to(attack: Attack) -> Callable[[float], Attack]:
    """``radius -> attack`` with that eps, by scaling the attack's own."""
    balls = [part.ball for part in attack.walk() if part.ball is not None]
    own = {float(value) for ball in balls for value in np.ravel(ball.eps)}
    if len(own) != 1 or not 0 < min(own) < np.inf:
        raise ValueError(
            f"attack: given eps {sorted(own)}; expected one finite eps > 0, or a function "
            "eps -> attack"
        )
    return lambda radius: attack.scaled(radius / min(own))
