"""What an evaluation shows in a report: its table, its pictures, its curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from advjax.evaluation.curves import Curve
from advjax.evaluation.result import Evaluation
from advjax.report.charts import Line
from advjax.report.images import amplification, amplified
from advjax.report.page import Gallery, Picture, Table


def accuracy_table(evaluation: Evaluation, title: str = "Accuracy") -> Table:
    """An evaluation's accuracies, intervals and costs."""
    header, rows = evaluation.rows()
    note = "Robust: right when clean and under the attack, judged on the returned image."
    if evaluation.cascade:
        note += " Each attack saw only what those above it had left standing."
    if counted := {r.draws for r in evaluation.attacks.values() if r.wrong_draws is not None}:
        note += (
            f" The model is randomised: its answer is the majority of {max(counted)} draws; "
            "fooled draws are the share of as many fresh ones on the attacked images, with an "
            "interval over images and draws."
        )
    return Table(header, rows, title, note)


def attack_gallery(
    evaluation: Evaluation,
    attack: str,
    x: Any,
    classes: Sequence[str],
    title: str = "",
    n: int = 8,
) -> Gallery:
    """Original, amplified perturbation and adversarial image of the first attacked examples.

    Args:
      evaluation: one that kept images.
      attack: the name of an attack in it.
      x: the images that were evaluated, uint8 or in [0, 1]; the first ones are enough.
      classes: class names.
      title: heading; the attack's name by default.
      n: how many examples at most.

    Raises:
      ValueError: if the evaluation kept no images.
    """
    result = evaluation.attacks[attack]
    if result.x_adv is None:
        raise ValueError(f"{attack}: no images were kept; evaluate(..., keep_images=16) does")
    x = np.asarray(x[: len(result.x_adv)])
    x = x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1)
    shown = np.flatnonzero(result.attacked[: len(x)])[:n]
    factor = amplification(x[shown], result.x_adv[shown])
    before, change, after = [], [], []
    for i in shown:
        said = _answer(classes, evaluation.prediction[i], evaluation.confidence[i])
        before.append(Picture(x[i], said, False))
        size = f"distance {result.distance[i]:.3g}"
        change.append(Picture(amplified(x[i], result.x_adv[i], factor), size))
        said = _answer(classes, result.prediction[i], result.confidence[i])
        after.append(Picture(result.x_adv[i], said, bool(result.success[i])))
    rows = (
        ("original", before),
        (f"perturbation \u00d7 {factor:g}", change),
        ("adversarial", after),
    )
    note = "Below each image the predicted class and its probability; middle grey: no change."
    return Gallery(rows, title or attack, note)


def curve_line(name: str, curve: Curve, **style: Any) -> Line:
    """A robustness curve with its intervals, in percent, for a ``Chart``."""
    share = lambda end: [100 * getattr(a, end) for a in curve.accuracy]
    return Line(name, list(curve.eps), share("value"), share("low"), share("high"), **style)


def _answer(classes: Sequence[str], prediction: int, confidence: float) -> str:
    name = classes[prediction] if 0 <= prediction < len(classes) else "no class"
    return f"{name}, {100 * confidence:.0f} %"
