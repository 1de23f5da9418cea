"""What an evaluation found: per example, summed up, and on disk."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from advjax.evaluation.draws import Shares
from advjax.evaluation.statistics import Accuracy, wilson_over_draws
from advjax.files import whole_file
from advjax.report.text import ruled

_ARRAYS = (
    "attacked",
    "success",
    "invalid",
    "stage",
    "prediction",
    "confidence",
    "loss",
    "distance",
    "forwards",
    "backwards",
    "first_success",
    "zero_gradient",
)


@dataclasses.dataclass(frozen=True, eq=False)
class AttackResult:
    """One attack's outcome, per example in the order of the data (N examples).

    Attributes:
      attacked: ``[N]`` bool; examples that were wrong when clean (and, in a cascade, those that an
        earlier attack fooled) are not attacked. Elsewhere the other arrays hold 0, -1 or NaN.
      success: ``[N]`` bool: a fresh forward pass on the returned image is wrong.
      invalid: ``[N]`` bool: not fooled, and an image that the attack returned was not finite,
        outside [0, 1] or outside the attack's own ball, or the model's answer on it was not finite:
        neither a success nor a robust example.
      stage: ``[N]`` int32, which of the attack's stages fooled it; -1 for none.
      prediction: ``[N]`` int32, the class of the returned image; -1 where logits are not finite.
      confidence: ``[N]`` float32, the softmax of that class.
      loss: ``[N]`` float32, the attack's own loss.
      distance: ``[N]`` float32, in the attack's norm.
      forwards: ``[N]`` int32, forward passes spent.
      backwards: ``[N]`` int32, backward passes spent.
      first_success: ``[N]`` int32, first iteration that was adversarial; -1 for none.
      zero_gradient: ``[N]`` int32, iterations without a gradient.
      seconds: wall clock of the attack, compilation included.
      x_adv: ``[M, ...]`` float32 images of the first M examples; the clean image where the example
        was not attacked. ``None`` unless images are kept.
      wrong_draws: ``[N]`` int32, of ``draws`` further draws of a randomised model, which nothing
        was chosen by, how many are wrong on the returned image; 0 where it is invalid. ``None``
        for another model.
      draws: how many draws a prediction is the majority of, and how many are counted.
    """

    attacked: np.ndarray
    success: np.ndarray
    invalid: np.ndarray
    stage: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    distance: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    first_success: np.ndarray
    zero_gradient: np.ndarray
    seconds: float
    x_adv: np.ndarray | None = None
    wrong_draws: np.ndarray | None = None
    draws: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Clean and robust accuracy of one model on one set.

    Attributes:
      ids: ``[N]`` int32, the examples' ids in their data set.
      y: ``[N]`` int32 labels.
      prediction: ``[N]`` int32, the class of the clean image.
      confidence: ``[N]`` float32, the softmax of that class.
      attacks: name to outcome, in the order they were run.
      cascade: whether an attack saw only what the earlier ones had left standing.
      level: confidence of the intervals.
      seconds: wall clock of the clean pass, compilation included.
      about: what was run and on what, strings and numbers.
    """

    ids: np.ndarray
    y: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    attacks: Mapping[str, AttackResult]
    cascade: bool
    level: float
    seconds: float
    about: Mapping[str, Any]

    @property
    def correct(self) -> np.ndarray:
        """``[N]`` bool: right on the clean image."""
        return self.prediction == self.y

    def standing(self, name: str | None = None) -> np.ndarray:
        """``[N]`` bool: right when clean, not fooled, and no attack on it ended invalid.

        Args:
          name: by this attack (in a cascade, by it and those before it); ``None``: by any.
        """
        if name is not None and name not in self.attacks:
            raise KeyError(f"no attack {name!r}; there are {', '.join(self.attacks)}")
        standing = self.correct.copy()
        for each, result in self.attacks.items():
            if name is None or self.cascade or each == name:
                standing &= ~(result.success | result.invalid)
            if each == name:
                break
        return standing

    def _accuracy(self, right: np.ndarray) -> Accuracy:
        return Accuracy(int(right.sum()), len(right), self.level)

    @property
    def clean(self) -> Accuracy:
        """Accuracy on the clean images."""
        return self._accuracy(self.correct)

    @property
    def robust(self) -> dict[str, Accuracy]:
        """Per attack, the share that is right when clean and under the attack."""
        return {name: self._accuracy(self.standing(name)) for name in self.attacks}

    @property
    def worst(self) -> Accuracy:
        """The share that is right when clean and under every attack: per example the worst case."""
        return self._accuracy(self.standing())

    def over_draws(self, name: str) -> Shares | None:
        """Per image the share of draws that an attack fooled, and its interval, ``[N]`` each.

        NaN where not attacked; ``None`` unless the model is randomised.
        """
        result = self.attacks[name]
        if result.wrong_draws is None:
            return None
        found = Shares.of(result.wrong_draws, result.draws, self.level)
        return Shares(*(np.where(result.attacked, values, np.nan) for values in found))

    def summary(self) -> dict[str, Any]:
        """Everything but the per-example arrays, fit for JSON: no NaN, no arrays."""
        return {
            "clean": self.clean.to_dict(),
            "robust": {name: a.to_dict() for name, a in self.robust.items()},
            "worst": self.worst.to_dict(),
            "attacks": {
                name: _costs(result) | {"over_draws": _over_draws(result, self.level)}
                for name, result in self.attacks.items()
            },
            "cascade": self.cascade,
            "level": self.level,
            "seconds": self.seconds,
            "about": dict(self.about),
        }

    def to_json(self) -> str:
        """``summary()`` as JSON text."""
        return json.dumps(self.summary(), indent=2, allow_nan=False)

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows of the table, as text."""
        drawn = any(result.wrong_draws is not None for result in self.attacks.values())
        header = (
            "attack",
            "accuracy %",
            f"{100 * self.level:g} % interval",
            "fooled",
            *(["fooled draws %"] if drawn else []),
            "median distance",
            "forwards",
            "backwards",
            "seconds",
        )
        nothing = [""] if drawn else []
        rows: list[tuple[str, ...]] = [
            ("clean", *_shown(self.clean), "", *nothing, "", "", "", f"{self.seconds:.1f}")
        ]
        for name, accuracy in self.robust.items():
            result, cost = self.attacks[name], _costs(self.attacks[name])
            distance = cost["median_distance"]
            warning = f" ({cost['invalid']} invalid images)" if cost["invalid"] else ""
            rows.append(
                (
                    ("after " if self.cascade else "") + name + warning,
                    *_shown(accuracy),
                    f"{cost['fooled']}/{cost['attacked']}",
                    *([_shown_draws(_over_draws(result, self.level))] if drawn else []),
                    "" if distance is None else f"{distance:.4g}",
                    f"{cost['mean_forwards']:.1f}",
                    f"{cost['mean_backwards']:.1f}",
                    f"{result.seconds:.1f}",
                )
            )
        if len(self.attacks) > 1:
            rows.append(("worst case", *_shown(self.worst), "", *nothing, "", "", "", ""))
        return header, rows

    def table(self) -> str:
        """The accuracies with their intervals and what each attack cost, as aligned text."""
        return ruled(*self.rows())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``path.npz`` (arrays) and ``path.json`` (summary), each whole or not at all."""
        arrays = {k: getattr(self, k) for k in ("ids", "y", "prediction", "confidence")}
        for i, result in enumerate(self.attacks.values()):
            arrays |= {f"{i}.{k}": getattr(result, k) for k in _ARRAYS}
            for k in ("x_adv", "wrong_draws"):
                if getattr(result, k) is not None:
                    arrays[f"{i}.{k}"] = getattr(result, k)
        base = Path(path)
        base.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".npz", ".json"):
            with whole_file(base.with_name(base.name + suffix)) as file:
                if suffix == ".npz":
                    np.savez_compressed(file, **arrays)
                else:
                    file.write(self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Reads what ``save`` wrote.

        Raises:
          FileNotFoundError: if a file is missing.
          ValueError: if one is broken, naming it.
        """
        base = Path(path)
        try:
            about = json.loads(base.with_name(base.name + ".json").read_text())
            arrays_path = base.with_name(base.name + ".npz")
            with open(arrays_path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            attacks = {
                name: AttackResult(
                    **{k: arrays[f"{i}.{k}"] for k in _ARRAYS},
                    seconds=cost["seconds"],
                    x_adv=arrays.get(f"{i}.x_adv"),
                    wrong_draws=arrays.get(f"{i}.wrong_draws"),
                    draws=(cost.get("over_draws") or {"draws": 1})["draws"],
                )
                for i, (name, cost) in enumerate(about["attacks"].items())
            }
            return cls(
                **{k: arrays[k] for k in ("ids", "y", "prediction", "confidence")},
                attacks=attacks,
                **{k: about[k] for k in ("cascade", "level", "seconds", "about")},
            )
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{base}.npz and {base}.json are no saved evaluation: {type(error).__name__}: "
                f"{' '.join(str(error).split())}"
            ) from error


def _shown(accuracy: Accuracy) -> tuple[str, str]:
    low, high = 100 * accuracy.low, 100 * accuracy.high
    return f"{100 * accuracy.value:.2f}", f"[{low:.2f}, {high:.2f}]"


def _over_draws(result: AttackResult, level: float) -> dict[str, Any] | None:
    """The share of draws that were fooled, the mean over attacked images, with its interval."""
    if result.wrong_draws is None:
        return None
    wrong = result.wrong_draws[result.attacked]
    value = float(wrong.mean()) / result.draws if len(wrong) else None
    low, high = wilson_over_draws(wrong, result.draws, level)
    return {"draws": result.draws, "value": value, "low": low, "high": high}


def _shown_draws(found: dict[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return ""
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _costs(result: AttackResult) -> dict[str, Any]:
    attacked, fooled = result.attacked, result.success
    mean = lambda values: float(values[attacked].mean()) if attacked.any() else 0.0
    distances = result.distance[fooled & np.isfinite(result.distance)]
    return {
        "attacked": int(attacked.sum()),
        "fooled": int(fooled.sum()),
        "median_distance": float(np.median(distances)) if len(distances) else None,
        "mean_forwards": mean(result.forwards),
        "mean_backwards": mean(result.backwards),
        "without_gradient": int((result.zero_gradient[attacked] > 0).sum()),
        "invalid": int(result.invalid.sum()),
        "seconds": result.seconds,
    }
