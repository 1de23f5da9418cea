"""Intervals for proportions."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for ``k`` of ``n`` (JASA 1927): about ``level`` coverage on average.

    Args:
      k: successes, 0 to n.
      n: trials; with none the interval is (0, 1).
      level: confidence, in (0, 1).

    Raises:
      ValueError: outside these ranges.
    """
    _check(k, n, level)
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, z2 = k / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the bound is 0 or 1 exactly, but for rounding.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval for ``k`` of ``n`` (Biometrika 1934): at least ``level`` coverage always.

    Arguments and errors as for ``wilson``.
    """
    _check(k, n, level)
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def wilson_over_draws(hits: np.ndarray, draws: int, level: float = 0.95) -> tuple[float, float]:
    """An interval for the mean share of successes, where each image was drawn ``draws`` times.

    Draws on one image are alike, so that the draws of all images are fewer independent trials than
    they are draws. Wilson's interval for as many trials as have the variance of the mean that the
    images show (the effective sample size of Korn & Graubard, Survey Methodology 1998): at least
    one per image, at most all draws. It is about other images of the same kind and other draws.

    Args:
      hits: ``[N]`` successes of each image, 0 to ``draws``; without images the interval is (0, 1).
      draws: per image, at least 1.
      level: confidence, in (0, 1).
    """
    n, shares = len(hits), np.asarray(hits, np.float64) / draws
    mean = float(shares.mean()) if n else 0.0
    variance = float(shares.var(ddof=1)) / n if n > 1 else 0.0
    trials = float(n)
    if variance > 0:
        trials = min(max(mean * (1 - mean) / variance, n), n * draws)
    elif 0 < mean < 1 and n > 1:  # all images alike
        trials = float(n * draws)
    return wilson(mean * trials, trials, level)


def _check(k: float, n: float, level: float) -> None:
    if not (n >= 0 and 0 <= k <= n):
        raise ValueError(f"given {k} of {n}; expected 0 <= k <= n")
    if not 0 < level < 1:
        raise ValueError(f"given level={level}; expected a number between 0 and 1")


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``total``, as a share and with its Wilson interval.

    Attributes:
      correct: how many.
      total: of how many, at least 1.
      level: confidence of the interval.
    """

    correct: int
    total: int
    level: float = 0.95

    def __post_init__(self) -> None:
        _check(self.correct, self.total, self.level)
        if self.total == 0:
            raise ValueError("an accuracy is of at least one example; given none")

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.correct / self.total

    @property
    def low(self) -> float:
        """Lower end of the interval, in [0, 1]."""
        return wilson(self.correct, self.total, self.level)[0]

    @property
    def high(self) -> float:
        """Upper end of the interval, in [0, 1]."""
        return wilson(self.correct, self.total, self.level)[1]

    def to_dict(self) -> dict[str, float]:
        """``correct``, ``total``, ``value``, ``low`` and ``high``, for JSON."""
        return {
            "correct": self.correct,
            "total": self.total,
            "value": self.value,
            "low": self.low,
            "high": self.high,
        }

    def __str__(self) -> str:
        """Percent with the interval: ``98.40 [97.00, 99.20]``."""
        return f"{100 * self.value:6.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"
