"""What a sweep costs beside its cells, and whether trainings are faster together than in turn.

Together: eight configurations of a network for 48x48 images that differ in learning rate, dropout
and seed, as one program mapped over their states (``fit_together``), in chunks of 2, 4 and 8,
beside one step of each in turn with the same compiled step (``fit``). A figure is the median of
rounds that take turns. Overhead: 10,000 cells that do nothing, here and in two workers. Scaling:
cells that keep a core busy, in 1, 2 and 4 workers, of this machine's and of a Ray on it.

    python benchmarks/sweeps.py            # 8 minutes on 2 cores; Ray only where it is installed
    python benchmarks/sweeps.py --only scaling

Writes ``benchmarks/results/sweeps.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CONFIGURATIONS, BATCH = 8, 64
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ConvNet 48x48, 4 filters": ("convnet48", {"filters": 4}),
    "ConvNet 48x48, 16 filters": ("convnet48", {"filters": 16}),
    "DenseNet 48x48, 4 filters": ("densenet48", {"filters": 4}),
    "perceptron, 256-256": ("mlp", {"hidden": (256, 256)}),
}
CELLS = '''"""Cells that do nothing."""
import dataclasses

from advjax.sweeps import choices


@dataclasses.dataclass(frozen=True)
class Config:
    a: int = 0
    b: int = 0
    seed: int = 0


grid = choices(a=range(100), b=range(10), seed=range(10))


def main(config, run_dir):
    return {"accuracy": (config.a + config.b) / 120}
'''

BUSY = '''"""Cells that keep one core busy for some tenths of a second."""
import dataclasses

from advjax.sweeps import choices


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0


grid = choices(seed=range(48))


def main(config, run_dir):
    total = config.seed
    for i in range(4_000_000):
        total = (total * 31 + i) % 1_000_003
    return {"total": total}
'''


def steppers(name: str) -> dict[str, Any]:
    """``run() -> seconds`` of one step of all configurations, in turn and by chunks."""
    import jax
    import numpy as np
    import optax

    from advjax import Standard, Training, create
    from advjax.data import Dataset
    from advjax.training.compiled import compiled_step, compiled_steps
    from advjax.training.parallel import place, positions, replicate
    from advjax.training.spec import root_keys
    from advjax.training.together import stack

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1024, 48, 48, 1), dtype=np.uint8)
    data = Dataset(x, np.arange(1024) % 2, classes=("a", "b"))
    network, fields = NETWORKS[name]
    adam = optax.inject_hyperparams(optax.adam)
    trainings = [
        Training(
            module=create(network, dropout=0.05 * (i + 1), **fields),
            objective=Standard(),
            optimizer=adam(learning_rate=1e-4 * (i + 1)),
            train=data,
            steps=1000,
            batch_size=BATCH,
            seed=i,
        )
        for i in range(CONFIGURATIONS)
    ]
    devices = jax.local_devices()[:1]
    put = lambda tree: replicate(tree, devices)
    places = positions(BATCH, devices)
    arrays = put(trainings[0].arrays())

    def stepper(size: int) -> Any:
        first = trainings[0]
        step = compiled_step(first, devices)
        if size > 1:
            step = compiled_steps(first, devices, shared=True)
        states, objectives = [], []
        for start in range(0, CONFIGURATIONS, size):
            part = trainings[start : start + size]
            made = [t.first_state(*root_keys(t.seed)[1::-1]) for t in part]
            objective = [t.full_objective for t in part]
            states.append(place(made[0] if size == 1 else stack(made), devices))
            objectives.append(put(objective[0] if size == 1 else stack(objective)))

        def run() -> float:
            began = time.perf_counter()
            for i, objective in enumerate(objectives):
                states[i], _ = step(states[i], places, objective, arrays)
            jax.block_until_ready(states)
            return time.perf_counter() - began

        return run

    return {"in turn" if n == 1 else f"{n} together": stepper(n) for n in (1, 2, 4, 8)}


def together(names: list[str], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        runs = steppers(name)
        for run in runs.values():
            run()  # compiles
        times: dict[str, list[float]] = {what: [] for what in runs}
        for _ in range(rounds):
            for what, run in runs.items():
                times[what].append(1e3 * run())
        median = {what: statistics.median(values) for what, values in times.items()}
        ratios = {what: value / median["in turn"] for what, value in median.items()}
        rows.append({"network": name, "ms": median, "ratios": ratios})
        print(name, ratios, file=sys.stderr, flush=True)
    return rows


def overhead() -> list[dict[str, Any]]:
    """Milliseconds a cell, and seconds to tell the status."""
    from advjax.sweeps import Here, Processes, sweep

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.py"
        path.write_text(CELLS)
        for name, executor in (("here", Here()), ("2 workers", Processes(2))):
            began = time.perf_counter()
            cells = sweep(path, Path(folder) / name, executor=executor)
            ms = 1e3 * (time.perf_counter() - began) / len(cells)
            began = time.perf_counter()
            command = [sys.executable, "-m", "advjax", "sweep", "status", str(Path(folder) / name)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            status = time.perf_counter() - began
            rows.append({"where": name, "cells": len(cells), "ms": ms, "status_s": status})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def scaling() -> list[dict[str, Any]]:
    """Milliseconds a busy cell once every worker has made its first; all tables are the same."""
    import importlib.util

    from advjax.sweeps import Here, Processes, Ray, sweep

    makers: list[tuple[str, Any]] = [("processes", Processes)]
    if importlib.util.find_spec("ray") is not None:
        makers.append(("Ray", lambda n: Ray(workers=n)))
    rows, tables = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "busy.py"
        path.write_text(BUSY)
        plans = [("here", 1, Here())]
        plans += [(name, n, make(n)) for name, make in makers for n in (1, 2, 4)]
        for name, workers, executor in plans:
            cells = sweep(path, Path(folder) / f"{name}{workers}", executor=executor)
            ends = sorted((c.began or 0) + c.seconds for c in cells)[workers - 1 :]
            ms = 1e3 * (ends[-1] - ends[0]) / (len(ends) - 1)
            rows.append({"where": name, "workers": workers, "ms": ms})
            tables.append([(c.name, c.metrics) for c in cells])
            print(rows[-1], file=sys.stderr, flush=True)
    assert all(table == tables[0] for table in tables)
    return rows


def report(
    rows: list[dict[str, Any]], costs: list[dict[str, Any]], scales: list[dict[str, Any]]
) -> str:
    """The tables, and the JSON beside them."""
    names = [what for what in rows[0]["ms"] if what != "in turn"] if rows else []
    lines = [
        "# Sweeps",
        "",
        f"{CONFIGURATIONS} configurations, batch {BATCH}, {os.cpu_count()} CPU cores: one step of "
        "all of them, and the time",
        "together over that in turn (1 is as fast, more is slower). Made by "
        "`python benchmarks/sweeps.py`.",
        "",
        "| network | ms in turn | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for r in rows:
        ratios = " | ".join(f"{r['ratios'][what]:.2f}" for what in names)
        lines.append(f"| {r['network']} | {r['ms']['in turn']:.0f} | {ratios} |")
    lines += ["", "| cells that do nothing | where | ms a cell | `advjax sweep status`, s |"]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {c['cells']:,} | {c['where']} | {c['ms']:.2f} | {c['status_s']:.2f} |" for c in costs
    ]
    lines += ["", "| cells that keep a core busy | workers | ms a cell | times as fast as one |"]
    lines += ["|---|---|---|---|"]
    one = {s["where"]: s["ms"] for s in scales if s["workers"] == 1}
    lines += [
        f"| {s['where']} | {s['workers']} | {s['ms']:.0f} | {one[s['where']] / s['ms']:.2f} |"
        for s in scales
    ]
    RESULTS.mkdir(exist_ok=True)
    about = {"cores": os.cpu_count(), "together": rows, "overhead": costs, "scaling": scales}
    (RESULTS / "sweeps.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / "sweeps.md").write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only",
        choices=("together", "overhead", "scaling"),
        help="measure one, and keep what was written down of the others",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.worker:  # again, with the settings that advjax gives its own processes
        from advjax.process_settings import settings

        environment = {**os.environ, **settings(os.environ)}
        command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
    before = json.loads((RESULTS / "sweeps.json").read_text()) if arguments.only else {}
    parts = {
        "together": lambda: together(arguments.networks, arguments.rounds),
        "overhead": overhead,
        "scaling": scaling,
    }
    found = [
        before.get(name, []) if arguments.only not in (None, name) else measure()
        for name, measure in parts.items()
    ]
    print(report(*found))


if __name__ == "__main__":
    main()
