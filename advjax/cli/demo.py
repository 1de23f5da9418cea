"""``advjax demo``: the main job in a minute, on real handwritten digits, without a network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advjax.cli.console import Console
from advjax.cli.options import Output
from advjax.cli.parsing import parse
from advjax.report.text import ruled

if TYPE_CHECKING:
    from advjax.data import Dataset
    from advjax.evaluation import Curve, Evaluation
    from advjax.training import Result, Training

PROG = "advjax demo"
DESCRIPTION = """Trains two classifiers of handwritten digits, attacks both, shows the difference.

One is trained as usual, one on adversarial examples (Madry et al. 2018). Both are attacked with
FGSM, PGD in L-inf and PGD in L2 over a range of eps. Prints one table and writes a report with
pictures and curves; both runs stay in the folder, for advjax predict, attack and evaluate. Needs no
network and no other file.

example:
  advjax demo --seed 1 --out runs/demo1"""

EPS = 0.2  # L-inf radius that the robust classifier is trained for: 3.2 of the 16 grey levels
LINF_GRID = (0.05, 0.1, 0.15, EPS, 0.25, 0.3)
L2_EPS = 0.5
L2_GRID = (0.25, L2_EPS, 0.75, 1.0)
EPOCHS, BATCH, RATE = 40, 64, 3e-3
PICTURES = 8
NAMES = {"standard": "standard", "robust": "Madry"}


@dataclasses.dataclass(frozen=True)
class Options(Output):
    seed: int = 0
    """Decides initial weights, batches and random starts."""
    out: Path = Path("runs/demo")
    """Folder for the report and the two runs; what an earlier demo left there is replaced."""


def main(args: Sequence[str]) -> None:
    options = parse(Options, args, prog=PROG, description=DESCRIPTION)
    began = time.monotonic()
    from advjax.cli.report import write
    from advjax.data import load

    console = Console(options.json)
    train, test = load("digits", "train"), load("digits", "test")
    results, curves, evaluations = {}, {}, {}
    for kind in NAMES:
        results[kind] = _fit(kind, train, test, options, console)
        curves[kind] = _curves(results[kind].last.model, test, options.seed, console, kind)
        evaluations[kind] = _evaluate(results[kind].last.model, test, options.seed)
        write(options.out / kind)
    report = options.out / "report.html"
    _write_report(report, test, results, curves, evaluations)
    image = _example(options.out, test)
    seconds = time.monotonic() - began
    rows = _rows(curves)
    console.say(f"{len(test)} test images, accuracy in % with 95 % intervals, images in [0, 1]")
    console.say(ruled(["attack", "eps", *NAMES.values(), "difference"], [_shown(r) for r in rows]))
    console.say(f"\nreport  {report}   ({seconds:.0f} s)")
    console.say(f"try     advjax attack {image} --run {options.out / 'robust'} --eps {EPS}")
    console.result(
        {
            "seed": options.seed,
            "eps": EPS,
            "examples": len(test),
            "seconds": seconds,
            "report": str(report),
            "rows": [{**r, **{k: r[k].to_dict() for k in NAMES}} for r in rows],
        }
    )


def training(kind: str, train: Dataset, test: Dataset, seed: int) -> Training:
    """The specification of the ``standard`` or the ``robust`` run."""
    from advjax import PGD, Linf, Madry, Standard, Training, create
    from advjax.training import optimizer, schedule

    steps = EPOCHS * (len(train) // BATCH)
    ball = Linf(EPS)
    objective: Any = Standard()
    if kind == "robust":
        attack = PGD(ball=ball, steps=7, best=False)
        # eps grows over the first third: from the full eps at once, training may never take off.
        ramp = schedule("linear", 0.0, 1.0, steps // 3)
        objective = Madry(attack=attack, eps_schedule=ramp)
    return Training(
        module=create("mlp", classes=10, hidden=(256, 256)),
        objective=objective,
        optimizer=optimizer("adam", schedule("warmup_cosine_decay", 0.0, RATE, steps // 10, steps)),
        train=train,
        test=test,
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=seed,
        evaluate_every=steps // 10,
        attacks={f"pgd-10 eps {EPS:g}": PGD(ball=ball, steps=10)},
    )


def _fit(kind: str, train: Dataset, test: Dataset, options: Options, console: Console) -> Result:
    from advjax.cli.watch import watch
    from advjax.training import fit

    with watch(console, f"training {NAMES[kind]}") as progress:
        return fit(
            training(kind, train, test, options.seed),
            options.out / kind,
            overwrite=True,
            progress=progress,
        )


def _curves(model: Any, test: Dataset, seed: int, console: Console, kind: str) -> dict[str, Curve]:
    """Attack to accuracy against eps."""
    import jax

    from advjax import FGSM, L2, PGD, Linf, robustness_curve

    planned = {
        "FGSM L-inf": (FGSM(ball=Linf(EPS)), LINF_GRID),
        "PGD L-inf": (PGD(ball=Linf(EPS)), LINF_GRID),
        "PGD L2": (PGD(ball=L2(L2_EPS)), L2_GRID),
    }
    found = {}
    with console.progress(f"attacking {NAMES[kind]}") as tell:
        for done, (name, (attack, grid)) in enumerate(planned.items()):
            tell(done, len(planned), name)
            key = jax.random.key(seed)
            found[name] = robustness_curve(model, test, attack, (0.0, *grid), key=key)
        tell(len(planned), len(planned))
    return found


def _rows(curves: dict[str, dict[str, Curve]]) -> list[dict[str, Any]]:
    """The table: one row per attack and eps, with each classifier's accuracy."""
    first = next(iter(curves.values()))
    rows: list[dict[str, Any]] = []
    for name, curve in first.items():
        for i, eps in enumerate(curve.eps):
            if eps > 0 or not rows:
                found = {kind: curves[kind][name].accuracy[i] for kind in curves}
                rows.append({"attack": name if eps > 0 else "none (clean)", "eps": eps, **found})
    return rows


def _shown(row: dict[str, Any]) -> list[str]:
    from advjax.cli.train import percent

    difference = 100 * (row["robust"].value - row["standard"].value)
    eps = f"{row['eps']:g}" if row["eps"] > 0 else ""
    return [row["attack"], eps, *(percent(row[kind]) for kind in NAMES), f"{difference:+.1f}"]


def _evaluate(model: Any, test: Dataset, seed: int) -> Evaluation:
    """The attack of the pictures, with the images it made."""
    import jax

    from advjax import PGD, Linf, evaluate

    attacks = {f"PGD L-inf, eps {EPS:g}": PGD(ball=Linf(EPS))}
    return evaluate(model, test, attacks, key=jax.random.key(seed), keep_images=PICTURES)


def _write_report(
    path: Path,
    test: Dataset,
    results: dict[str, Result],
    curves: dict[str, dict[str, Curve]],
    evaluations: dict[str, Evaluation],
) -> None:
    from advjax.cli.train import percent
    from advjax.evaluation.sections import attack_gallery, curve_line
    from advjax.report.charts import Chart, training_charts
    from advjax.report.page import Row, Section, Table, Text, write_report

    header = ["attack", "eps", *(f"{name} %" for name in NAMES.values()), "difference"]
    sections: list[Section] = [
        Text(
            "Two networks learned the same handwritten digits. The standard one saw the images "
            f"as they are, the Madry one only what a seven-step attack of L-inf radius {EPS:g} "
            "made of them. Both are attacked here on images that neither has seen."
        ),
        Table(
            header,
            [_shown(row) for row in _rows(curves)],
            "Accuracy",
            f"{len(test)} test images, 95 % intervals. Robust: right both clean and attacked.",
        ),
    ]
    drawings = []
    for title, attacks in (("L-inf", ("PGD L-inf", "FGSM L-inf")), ("L2", ("PGD L2",))):
        lines = [
            curve_line(f"{NAMES[kind]}, {attack}", curves[kind][attack], colour=i, dashed=j > 0)
            for j, attack in enumerate(attacks)
            for i, kind in enumerate(NAMES)
        ]
        drawings.append(Chart(f"Robust accuracy, {title}", lines, "eps", "accuracy in %", (0, 100)))
    sections.append(Row(drawings))
    sections += [
        attack_gallery(found, name, test.x[:PICTURES], test.classes, f"{NAMES[kind]}: {name}")
        for kind, found in evaluations.items()
        for name in found.attacks
    ]
    for kind, result in results.items():
        sections.append(Text("", f"Training: {NAMES[kind]}"))
        sections.append(Row(training_charts(result.history)))
    curve = curves["robust"]["PGD L-inf"]
    clean, robust = curve.accuracy[0], curve.accuracy[curve.eps.index(EPS)]
    lead = f"The Madry network: {percent(clean)} clean, {percent(robust)} under PGD, eps {EPS:g}"
    write_report(path, "advjax demo: a standard and a robust classifier", sections, lead)


def _example(folder: Path, test: Dataset) -> Path:
    """A test image as a file, for ``advjax attack`` and ``advjax predict``."""
    from advjax.data import to_float
    from advjax.report.images import save_png

    path = folder / "digit.png"
    save_png(path, to_float(test.x[0]))
    return path
