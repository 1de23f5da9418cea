"""One-step training collapses within an epoch; GradAlign holds it off on one of two seeds.

FGSM without a random start, while eps grows from 0: at first robust accuracy grows with it, then
the network learns to fool FGSM and PGD's accuracy falls to zero, unseen by FGSM's. GradAlign keeps
the gradient the same inside the ball, so that one step stays the worst one. A PGD of five steps on
one batch of training images after each epoch is enough to notice: ``Training(watch=...)`` stops
and gives the model of the epoch before.

Source: Andriushchenko, Flammarion, "Understanding and Improving Fast Adversarial Training", NeurIPS
2020 (arXiv 2007.02617), section 4 and figure 1, on CIFAR-10; lambda .2 is theirs for eps 8/255. The
watch: Wong, Rice, Kolter, ICLR 2020 (arXiv 2001.03994).

    advjax train experiments/catastrophic_overfitting.py --data-dir tensorflow_datasets

Hardware and time: 2 CPU cores, about 4 minutes for two seeds.

Expected: FGSM's PGD and APGD accuracy near 0 with FGSM accuracy above 50; GradAlign's above 20; the
watched run stops before its last epoch, with a model that is more robust than FGSM's last one.

Measured, seeds 0 and 1, 500 test images, percent:

                clean         FGSM          PGD-40        APGD
    FGSM        97.4  97.0    82.6  92.0     0.0   0.0     0.0   0.0
    watched     95.8  97.0    73.0  92.0    21.6   0.0    10.0   0.0
    GradAlign   98.2  97.0    87.0  83.6     2.0  56.6     0.0  41.0

FGSM collapses on both seeds. GradAlign holds it off on seed 1 and not on seed 0; the watch sees it
on seed 0 (it stops at step 1,000 with the model of step 800) and not on seed 1, where the accuracy
that it looks at never rose by the fall that it waits for. The published lambda is for eps 8/255: at
eps .3 a larger one does worse (1.0: PGD 0.0 and 11.2), at eps .25 the same one better (250 images,
PGD-40: FGSM 7.2 and 33.6, GradAlign 20.4 and 69.2).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from advjax import APGD, FGSM, PGD, GradAlign, Linf, Madry, Training, create, evaluate, fit, load
from advjax.data import Dataset
from advjax.report.charts import Chart, Line
from advjax.report.page import Text, write_report
from advjax.training import optimizer, schedule

ARMS = ("FGSM", "watched", "GradAlign")


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float = 0.3
    """L-inf radius."""
    weight: float = 0.2
    """Lambda of GradAlign."""
    size: int = 10_000
    """Training images, drawn by each seed."""
    epochs: int = 8
    batch_size: int = 50
    lr_max: float = 3e-3
    """Adam's learning rate at the peak, after 40 % of the steps."""
    warm_up: float = 0.5
    """Share of the steps over which eps grows from 0."""
    watch_drop: float = 0.2
    """Fall of the accuracy under the watch, from one epoch to the next, that ends a training."""
    network: str = "mnist_fast"
    seeds: tuple[int, ...] = (0, 1)
    examples: int = 500
    """Test images to evaluate on, a seeded subset."""
    data: str = "mnist"
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def training(config: Config, train: Dataset, test: Dataset, seed: int, arm: str) -> Training:
    """One arm of the study."""
    steps = config.epochs * (len(train) // config.batch_size)
    peak = int(0.4 * steps)
    grow = schedule("linear", 0.0, 1.0, max(int(config.warm_up * steps), 1))
    ball = Linf(config.eps)
    objective: Any = Madry(FGSM(ball=ball), eps_schedule=grow)
    if arm == "GradAlign":
        objective = GradAlign(objective=objective, weight=config.weight)
    if arm == "watched":  # by training images alone
        watch = PGD(ball=ball, step_size=config.eps / 4, steps=5)
        seen: dict[str, Any] = {"watch": watch, "watch_drop": config.watch_drop}
    else:
        attacks = {"fgsm": FGSM(ball=ball), "pgd-10": PGD(ball=ball, steps=10)}
        seen = {"test": test, "attacks": attacks, "evaluate_examples": 250}
    return Training(
        module=create(config.network),
        objective=objective,
        optimizer=optimizer("adam", schedule("triangular", config.lr_max, peak, steps)),
        train=train,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=seed,
        **seen,
    )


def main(config: Config, run_dir: Path, progress: Any = None) -> dict[str, Any]:
    all_train = load(config.data, "train", config.data_dir)
    test = load(config.data, "test", config.data_dir)
    attacks = {
        "fgsm": FGSM(ball=Linf(config.eps)),
        "pgd": PGD(ball=Linf(config.eps), step_size=config.eps / 15, steps=40),
        "apgd": APGD(ball=Linf(config.eps)),
    }
    rows, lines = [], []
    for seed in config.seeds:
        train = all_train.subset(config.size, seed)
        for arm in ARMS:
            settings = {**dataclasses.asdict(config), "seeds": seed, "arm": arm}
            result = fit(
                training(config, train, test, seed, arm),
                run_dir / f"{arm}-{seed}",
                config=settings,
                progress=progress,
            )
            given = result.best if arm == "watched" else result.last
            images, key = test.subset(config.examples), jax.random.key(seed)
            found = evaluate(given.model, images, attacks, key=key)
            accuracy = {"clean": found.clean, **found.robust}
            rows.append(
                {
                    "seed": seed,
                    "arm": arm,
                    "step": given.step,
                    "end": result.last.step,
                    "stopped": result.stopped,
                    **{name: value.to_dict() for name, value in accuracy.items()},
                }
            )
            judged = [r for r in result.history if r["kind"] == "evaluation"]
            for i, name in enumerate(("robust/fgsm", "robust/pgd-10") if judged else ()):
                values = [100 * r[name] for r in judged]
                label, dashed = f"{arm}, {name[7:]}, seed {seed}", seed != config.seeds[0]
                colour = i if arm == "FGSM" else 2 + i
                steps = [r["step"] for r in judged]
                lines.append(Line(label, steps, values, colour=colour, dashed=dashed))
    chart = Chart("Accuracy on 250 test images", lines, "step", "accuracy, %", (0, 100))
    text = Text((__doc__ or "").split("\n\n    advjax")[0])
    write_report(run_dir / "report.html", "Catastrophic overfitting", [text, chart], "")
    return {"rows": rows, "examples": len(images), "table": _table(rows)}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["seed  training   model of step  ended at  clean %  FGSM %  PGD-40 %  APGD % (95 %)"]
    for r in rows:
        value = {name: 100 * r[name]["value"] for name in ("clean", "fgsm", "pgd", "apgd")}
        interval = f"[{100 * r['apgd']['low']:4.1f}, {100 * r['apgd']['high']:4.1f}]"
        lines.append(
            f"{r['seed']:4}  {r['arm']:9}  {r['step']:13}  {r['end']:8}  {value['clean']:7.1f}  "
            f"{value['fgsm']:6.1f}  {value['pgd']:8.1f}  {value['apgd']:5.1f} {interval}"
        )
    return "\n".join(lines)
