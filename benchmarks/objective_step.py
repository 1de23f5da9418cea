"""What a training step costs with every objective, in plain steps of the same network.

Steps that ``fit`` runs, on noise, in one process; the objectives take turns, and a figure is the
median over the steps of all rounds. ``passes`` are the forward-backward passes of a batch that an
objective needs, a forward pass alone being a half; ``ratio`` is its time over that of so many plain
steps: 1 is to be expected, more is waste. A pass for the image's gradient alone is cheaper than a
plain step, which updates the weights too, so many are below.

    python benchmarks/objective_step.py            # 6 minutes on 2 cores

Writes ``benchmarks/results/objective_step.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BATCH, EPS = 64, 0.3
# The passes, and what they are.
PASSES: dict[str, tuple[float, str]] = {
    "Standard": (1, "the loss's"),
    "fast-AT": (2, "FGSM's, the loss's"),
    "FreeAT": (1, "one for image and weights"),
    "Madry, PGD-10": (11, "ten of the attack, the loss's"),
    "TRADES, PGD-10": (12, "ten of the attack, the loss's two"),
    "MART, PGD-10": (12, "ten of the attack, the loss's two"),
    "AWP around Madry, PGD-10": (12, "ten of the attack, one in the weights, the loss's"),
    "GradAlign around FGSM": (6, "FGSM's, the loss's, two gradients, back through one"),
    "EnsembleAdversarial, FGSM": (3, "FGSM's on one network, the loss's two"),
    "VAT": (4.5, "the labelled images'; of others the answer, direction (two), loss"),
    "AdversarialRegularization": (3, "the neighbour's, the loss's two"),
    "GraphRegularization": (3, "the images', two neighbours'"),
    "IBP": (3, "the images', two bounds"),
    "LogitSqueezing": (1, "the loss's, on noisy images"),
    "GradientPenalty": (3, "a gradient, back through it"),
    "MultiTask": (1, "the loss's"),
    "DANN": (2, "one of each domain"),
}
BASELINES = {"DANN": "MultiTask"}  # of a network with two heads; Standard for the others


def trainings() -> dict[str, Any]:
    """A training of every objective."""
    import jax
    import numpy as np
    import optax
    from training_step import images

    import advjax as a

    data, ball = images(), a.Linf(eps=EPS)
    pgd = a.PGD(ball=ball, steps=10, best=False)
    fgsm = a.FGSM(ball=ball)
    start = a.FGSM(ball=ball, step_size=1.25 * EPS, random_start=True, start_in_box=False)
    network = a.create("lenet5")
    teachers = tuple(
        a.Classifier(network, a.init(network, jax.random.key(i), (28, 28, 1))) for i in range(3)
    )
    index = np.random.default_rng(1).integers(0, len(data), (len(data), 2))
    two_heads = a.Heads(others=(("parity", (100, 2)),), reverse=())
    parity = tuple(i % 2 for i in range(10))
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "Standard": (a.Standard(), {}),
        "fast-AT": (a.Madry(start), {}),
        "FreeAT": (a.FreeAT(ball), {}),
        "Madry, PGD-10": (a.Madry(pgd), {}),
        "TRADES, PGD-10": (a.TRADES(pgd), {}),
        "MART, PGD-10": (a.MART(pgd), {}),
        "AWP around Madry, PGD-10": (a.AWP(a.Madry(pgd)), {}),
        "GradAlign around FGSM": (a.GradAlign(a.Madry(fgsm)), {}),
        "EnsembleAdversarial, FGSM": (a.EnsembleAdversarial(fgsm, models=teachers), {}),
        "VAT": (a.VAT(eps=2.0), {"unlabelled": data}),
        "AdversarialRegularization": (a.AdversarialRegularization(step=0.2), {}),
        "GraphRegularization": (
            a.GraphRegularization(),
            {"neighbours": (index, np.ones(index.shape, np.float32))},
        ),
        "IBP": (a.IBP(ball), {}),
        "LogitSqueezing": (a.LogitSqueezing(), {}),
        "GradientPenalty": (a.GradientPenalty(), {}),
        "MultiTask": (a.MultiTask(tables={"parity": parity}), {"module": two_heads}),
        "DANN": (a.DANN(), {"module": a.Heads(), "unlabelled": data}),
    }
    given = {"module": network, "steps": 1, "train": data, "batch_size": BATCH}
    return {
        name: a.Training(objective=objective, optimizer=optax.adam(1e-3), **{**given, **more})
        for name, (objective, more) in made.items()
    }


def measure(names: list[str], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of the steps of every objective, taking turns."""
    from training_step import stepper

    runs = {name: stepper(training) for name, training in trainings().items() if name in names}
    counts = {}
    for name, run in runs.items():
        run(2)  # compiles
        counts[name] = max(3, int(seconds * 1e3 / statistics.median(run(3))))
        print(name, counts[name], file=sys.stderr, flush=True)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name] += run(counts[name])[1:]  # the first finds cold caches
    return times


def report(times: dict[str, list[float]]) -> str:
    """The table, and the JSON beside it."""
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, ms in median.items():
        passes, what = PASSES[name]
        plain = median[BASELINES.get(name, "MultiTask" if name == "MultiTask" else "Standard")]
        low, _, high = statistics.quantiles(times[name], n=4)
        rows.append(
            {"objective": name, "ms": ms, "quartiles": [low, high], "passes": passes,
             "what": what, "ratio": ms / (passes * plain)}
        )  # fmt: skip
    lines = [
        "# Milliseconds per training step, by objective",
        "",
        f"LeNet5 on 28x28, batch {BATCH}, {os.cpu_count()} CPU cores (DANN and MultiTask: a "
        "network with two heads); median (quartiles).",
        "`ratio`: over so many plain steps as the objective has passes. Made by "
        "`python benchmarks/objective_step.py`.",
        "",
        "| objective | ms | passes | what they are | ratio |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['objective']} | {r['ms']:.1f} ({r['quartiles'][0]:.1f}, {r['quartiles'][1]:.1f}) "
        f"| {r['passes']:g} | {r['what']} | {r['ratio']:.2f} |"
        for r in rows
    ]
    RESULTS.mkdir(exist_ok=True)
    about = {"cores": os.cpu_count(), "batch": BATCH, "rows": rows}
    (RESULTS / "objective_step.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / "objective_step.md").write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per objective and round")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.worker:  # again, with the settings that advjax gives its own processes
        from advjax.process_settings import settings

        environment = {**os.environ, **settings(os.environ)}
        command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
    names = [*{"Standard": 0, "MultiTask": 0, **dict.fromkeys(arguments.objectives)}]
    print(report(measure(names, arguments.rounds, arguments.seconds)))


if __name__ == "__main__":
    main()
