"""Milliseconds per adversarial training step, beside PyTorch doing the same in the same run.

Two recipes: Madry's PGD-7 on the MNIST network of Madry et al. with batch 128, and fast-AT (FGSM
with a random start) on that of Wong et al. with batch 100; Adam, images on the device as uint8,
the attack and the update in one step, as training does it. JAX runs the step that ``fit`` runs.
PyTorch attacks by ``torch.autograd.grad`` of the image alone, with weights and images in
channels_last and as they come. Every contender is a process of its own with all cores; they take
turns, so that a busy machine slows them alike; the figure is the median over steps of all rounds.
Images are random: the time does not depend on what is in them.

    python benchmarks/training_step.py --torch-python PATH   # a Python that has PyTorch

Writes ``benchmarks/results/training_step.{json,md}``. About 3 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# attack: steps, eps, step size; then batch, learning rate
RECIPES: dict[str, dict[str, Any]] = {
    "madry_pgd7": {"net": "mnist_madry", "steps": 7, "step_size": 0.1, "batch": 128, "lr": 1e-4},
    "fast_at": {"net": "mnist_fast", "steps": 1, "step_size": 0.375, "batch": 100, "lr": 5e-3},
}
EPS, IMAGES = 0.3, 10_000


def images() -> Any:
    """MNIST-shaped noise with labels."""
    import numpy as np

    from advjax.data import Dataset

    rng = np.random.default_rng(0)
    return Dataset(
        x=rng.integers(0, 256, (IMAGES, 28, 28, 1)).astype(np.uint8),
        y=rng.integers(0, 10, IMAGES),
        classes=tuple("0123456789"),
    )


def stepper(training: Any) -> Callable[[int], list[float]]:
    """Makes n more steps of a training, as ``fit`` does, and tells the milliseconds of each."""
    import jax

    from advjax.runs.loop import steps_in_flight
    from advjax.training.parallel import parallel, place, positions, replicate
    from advjax.training.spec import root_keys

    devices = jax.local_devices()
    init_key, step_key, _ = root_keys(training.seed)
    held = [place(training.first_state(step_key, init_key), devices)]
    data = (training.full_objective, training.arrays())
    constant = [replicate(value, devices) for value in data]
    places, run = positions(training.batch_size, devices), parallel(training.step(), devices)

    def measure(n: int) -> list[float]:
        ends, waiting = [time.perf_counter()], []
        for _ in range(n):
            held[0], metrics = run(held[0], places, *constant)
            waiting.append(metrics["loss"])
            if len(waiting) >= steps_in_flight(devices):
                waiting.pop(0).block_until_ready()
                ends.append(time.perf_counter())
        for loss in waiting:
            loss.block_until_ready()
            ends.append(time.perf_counter())
        return [(b - a) * 1e3 for a, b in zip(ends, ends[1:], strict=False)]

    return measure


def jax_worker() -> None:
    import jax
    import optax

    from advjax import PGD, Linf, Madry, Training, create

    data = images()
    runs = {}
    for name, recipe in RECIPES.items():
        attack = PGD(
            ball=Linf(eps=EPS), step_size=recipe["step_size"], steps=recipe["steps"], best=False
        )
        training = Training(
            module=create(recipe["net"]), objective=Madry(attack=attack), steps=1, train=data,
            optimizer=optax.adam(recipe["lr"]), batch_size=recipe["batch"],
        )  # fmt: skip
        runs[name] = stepper(training)
    about = {"jax": jax.__version__, "device": jax.local_devices()[0].device_kind}
    serve(lambda name, n: runs[name](n), about)


def torch_worker(channels_last: bool) -> None:
    import torch  # type: ignore[import-not-found]
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    nets = {
        "mnist_madry": lambda: nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(7 * 7 * 64, 1024), nn.ReLU(), nn.Linear(1024, 10),
        ),
        "mnist_fast": lambda: nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(7 * 7 * 32, 100), nn.ReLU(), nn.Linear(100, 10),
        ),
    }  # fmt: skip
    x = torch.randint(0, 256, (IMAGES, 1, 28, 28), dtype=torch.uint8)
    y = torch.randint(0, 10, (IMAGES,))
    runs = {}
    for name, recipe in RECIPES.items():
        net = nets[recipe["net"]]().to(memory_format=layout)
        runs[name] = (net, torch.optim.Adam(net.parameters(), recipe["lr"]))

    def one_step(name: str) -> None:
        net, optimizer = runs[name]
        recipe = RECIPES[name]
        index = torch.randint(0, IMAGES, (recipe["batch"],))
        clean = (x[index].float() / 255).contiguous(memory_format=layout)
        labels = y[index]
        adv = (clean + torch.empty_like(clean).uniform_(-EPS, EPS)).clamp_(0, 1)
        for _ in range(recipe["steps"]):
            adv.requires_grad_(True)
            (grad,) = torch.autograd.grad(F.cross_entropy(net(adv), labels, reduction="sum"), adv)
            with torch.no_grad():
                adv = adv + recipe["step_size"] * grad.sign()
                adv = torch.minimum(torch.maximum(adv, clean - EPS), clean + EPS).clamp_(0, 1)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(adv), labels).backward()
        optimizer.step()

    def measure(name: str, n: int) -> list[float]:
        found = []
        for _ in range(n):
            began = time.perf_counter()
            one_step(name)
            found.append((time.perf_counter() - began) * 1e3)
        return found

    serve(measure, {"torch": torch.__version__, "threads": torch.get_num_threads()})


def serve(measure: Any, about: dict[str, Any]) -> None:
    """Answers ``[recipe, steps]`` lines with milliseconds per step, until the input ends."""
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        name, n = json.loads(line)
        print(json.dumps(measure(name, n)), flush=True)


class Contender:
    """A worker process and what it has measured."""

    def __init__(self, python: str, worker: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--worker", worker],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.about = json.loads(self._answer())
        self.times: dict[str, list[float]] = {name: [] for name in RECIPES}

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with code {self.process.wait()}; its error is above")
        return line

    def measure(self, name: str, n: int) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, n]) + "\n")
        self.process.stdin.flush()
        return json.loads(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch-python", help="a Python that has PyTorch; none leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="per contender and round")
    parser.add_argument("--worker", choices=("jax", "torch", "torch-cl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "jax":
        return jax_worker()
    if arguments.worker:
        return torch_worker(arguments.worker == "torch-cl")

    from advjax.process_settings import settings

    contenders = {
        "advjax": Contender(sys.executable, "jax", settings(os.environ)),
        "advjax, no process settings": Contender(sys.executable, "jax", {}),
    }
    if arguments.torch_python:
        contenders["PyTorch"] = Contender(arguments.torch_python, "torch", {})
        contenders["PyTorch channels_last"] = Contender(arguments.torch_python, "torch-cl", {})
    steps = {}
    for label, contender in contenders.items():
        for name in RECIPES:
            contender.measure(name, 3)  # compiles, and warms up
            once = statistics.median(contender.measure(name, 3))
            steps[label, name] = max(5, int(arguments.seconds * 1e3 / once / len(RECIPES)))
    for _ in range(arguments.rounds):
        for name in RECIPES:
            for label, contender in contenders.items():
                # The first step after another's turn finds cold caches.
                contender.times[name] += contender.measure(name, steps[label, name])[1:]
    for contender in contenders.values():
        contender.close()
    report(contenders)


def report(contenders: dict[str, Contender]) -> None:
    """Writes the JSON and the table, and prints the table."""
    rows = {
        label: {
            "about": contender.about,
            "ms": {
                name: {
                    "median": round(statistics.median(times), 3),
                    "quartiles": [round(q, 3) for q in statistics.quantiles(times, n=4)[::2]],
                    "steps": len(times),
                }
                for name, times in contender.times.items()
            },
        }
        for label, contender in contenders.items()
    }
    about = {"cores": os.cpu_count(), "recipes": RECIPES, "eps": EPS}
    lines = [
        "# Milliseconds per adversarial training step",
        "",
        f"{os.cpu_count()} CPU cores, median (quartiles) over steps, contenders taking turns. "
        "Made by `python benchmarks/training_step.py`.",
        "",
        "| | "
        + " | ".join(f"{n}, {r['net']}, batch {r['batch']}" for n, r in RECIPES.items())
        + " |",
        "|---" * (len(RECIPES) + 1) + "|",
    ]
    for label, row in rows.items():
        cells = [
            "{:.1f} ({:.1f}, {:.1f})".format(row["ms"][n]["median"], *row["ms"][n]["quartiles"])
            for n in RECIPES
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"about": about, "contenders": rows}, indent=2)
    (RESULTS / "training_step.json").write_text(text + "\n")
    (RESULTS / "training_step.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
