"""Adds up, on the host, what the stages of one attack did to each example."""

from __future__ import annotations

import numpy as np

from advjax.evaluation.result import AttackResult
from advjax.types import Record


class Tally:
    """The per-example arrays of an ``AttackResult`` in the making.

    Args:
      attacked: ``[N]`` bool, who is going to be attacked.
      x: ``[M, ...]`` clean images, the first of which are replaced by adversarial ones; or None.
      draws: of a randomised model, that are counted on each image; None for another.
    """

    def __init__(
        self, attacked: np.ndarray, x: np.ndarray | None, draws: int | None = None
    ) -> None:
        n = len(attacked)
        self.arrays: dict[str, np.ndarray] = {"attacked": attacked.copy()}
        for name in ("success", "invalid"):
            self.arrays[name] = np.zeros(n, bool)
        for name in ("stage", "prediction", "first_success"):
            self.arrays[name] = np.full(n, -1, np.int32)
        for name in ("confidence", "loss", "distance"):
            self.arrays[name] = np.full(n, np.nan, np.float32)
        for name in ("forwards", "backwards", "zero_gradient"):
            self.arrays[name] = np.zeros(n, np.int32)
        if draws is not None:
            self.arrays["wrong_draws"] = np.zeros(n, np.int32)
        self.draws = draws
        self.x_adv = None if x is None else np.array(x)

    def add(
        self,
        stage: int,
        comparable: bool,
        at: np.ndarray,
        y: np.ndarray,
        outcome: tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray | None, Record],
    ) -> None:
        """A stage's outcome for the examples ``at [B]``, all unfooled before it.

        Args:
          stage: its number; what stage 0 found is kept until something worse comes.
          comparable: whether its loss can be compared with that of stage 0.
          at: positions of the examples.
          y: ``[B]`` their labels.
          outcome: the fresh ``(prediction, confidence)`` on the returned images, whether these are
            valid, how many further draws of a randomised model are wrong, and the attack's own
            record.
        """
        (prediction, confidence), valid, wrong_draws, record = outcome
        valid = valid & (prediction >= 0)  # -1: the answer is not finite
        fooled = (prediction != y) & valid
        worse = fooled | (record.loss > self.arrays["loss"][at]) if comparable else fooled
        if stage == 0:
            worse = np.ones_like(fooled)
        news: dict[str, np.ndarray] = {
            "prediction": prediction,
            "confidence": confidence,
            "loss": np.asarray(record.loss),
            "distance": np.asarray(record.distance),
        }
        if wrong_draws is not None:
            news["wrong_draws"] = np.where(valid, wrong_draws, 0)
        for name, new in news.items():
            self.arrays[name][at[worse]] = new[worse]
        if self.x_adv is not None and record.x_adv is not None:
            kept = worse & (at < len(self.x_adv))
            self.x_adv[at[kept]] = record.x_adv[kept]
        self.arrays["success"][at] = fooled
        self.arrays["stage"][at[fooled]] = stage
        for name in ("forwards", "backwards", "zero_gradient"):
            self.arrays[name][at] += getattr(record, name)
        first = self.arrays["first_success"][at]
        self.arrays["first_success"][at] = np.where(first < 0, record.first_success, first)
        self.arrays["invalid"][at] = (self.arrays["invalid"][at] | ~valid) & ~fooled

    def result(self, seconds: float) -> AttackResult:
        return AttackResult(
            **self.arrays,
            draws=self.draws or 1,
            seconds=seconds,
            x_adv=self.x_adv,
        )
