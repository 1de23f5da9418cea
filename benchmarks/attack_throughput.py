"""PGD throughput beside Foolbox and torchattacks: adversarial examples per second on CPU.

The same weights, images, steps and thread count for all; logits are compared before anything is
timed. JAX and PyTorch run in two processes that take turns, call by call, so that a change in the
machine's mood hits both; each number is the median over the rounds, compilation apart. PyTorch is
tried in both memory formats and its best counts; its parameters ask for no gradient, its ReLUs are
in place, and the attacks are called through their bare loops.

    pip install torch==2.13.0 && pip install -e '.[peers]' && pip install --no-deps torchattacks
    python benchmarks/attack_throughput.py                         # every network, about 15 minutes
    python benchmarks/attack_throughput.py --nets mnist_madry --steps 10 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# name: (create() fields, image shape, batch, eps, step size)
NETS: dict[str, tuple[dict[str, Any], tuple[int, int, int], int, float, float]] = {
    "mnist_madry": ({}, (28, 28, 1), 128, 0.3, 0.01),
    "densenet48": ({}, (48, 48, 1), 64, 8 / 255, 2 / 255),
    "convnet48": ({}, (48, 48, 1), 64, 8 / 255, 2 / 255),
    "resnet18": ({}, (32, 32, 3), 32, 8 / 255, 2 / 255),
    "densenet121": ({}, (32, 32, 3), 8, 8 / 255, 2 / 255),
}
CONTENDERS = (
    "advjax",
    "foolbox",
    "foolbox channels_last",
    "torchattacks",
    "torchattacks channels_last",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nets", default=",".join(NETS), help="comma-separated: %(default)s")
    parser.add_argument(
        "--batch", type=int, help="images at a time; a size per network if not given"
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians are reported")
    parser.add_argument("--threads", type=int, default=2, help="cores for either side")
    parser.add_argument(
        "--contenders", default=",".join(CONTENDERS), help="comma-separated: %(default)s"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "attack_throughput.json")
    parser.add_argument("--worker", choices=("advjax", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args.worker, args.threads)
        return
    for net in args.nets.split(","):
        if net not in NETS:
            parser.error(f"unknown network {net!r}; taken are {', '.join(NETS)}")
    contenders = args.contenders.split(",")
    results = {net: compare(net, contenders, args) for net in args.nets.split(",")}
    if args.out.exists():  # networks that were not run again keep their results
        results = json.loads(args.out.read_text())["results"] | results
    results = {net: results[net] for net in NETS if net in results}
    report = {"machine": machine(args.threads), "results": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(report))
    print(table(report))


def compare(net: str, contenders: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """One network: all contenders in turn, ``args.repeats`` times."""
    fields, shape, batch, eps, step_size = NETS[net]
    with tempfile.TemporaryDirectory() as folder:
        task = {
            "net": net, "fields": fields, "shape": shape, "batch": args.batch or batch, "eps": eps,
            "step_size": step_size, "steps": args.steps, "file": os.path.join(folder, "task.npz"),
        }  # fmt: skip
        ours = Worker("advjax", args.threads)
        told = ours.ask(cmd="prepare", **task)
        theirs = Worker("torch", args.threads)
        versions = told["versions"] | theirs.ask(cmd="prepare", **task)["versions"]
        error = theirs.ask(cmd="check")["error"]
        if not error < 1e-4:
            raise SystemExit(f"{net}: PyTorch's logits differ by {error} of the largest; stopped")
        side = {c: ours if c == "advjax" else theirs for c in contenders}
        # One step: compiles everything and lets PyTorch choose its kernels.
        first = {c: side[c].ask(cmd="time", what=c, steps=1)["seconds"] for c in contenders}
        seconds: dict[str, list[float]] = {c: [] for c in contenders}
        success = {}
        for _ in range(args.repeats):
            for c in contenders:
                answer = side[c].ask(cmd="time", what=c)
                seconds[c].append(answer["seconds"])
                success[c] = answer["success"]
        ours.close(), theirs.close()
    median = {c: statistics.median(s) for c, s in seconds.items()}
    rate = {c: task["batch"] / s for c, s in median.items()}
    peers = [c for c in contenders if c != "advjax"]
    best = max(peers, key=rate.__getitem__) if peers else None
    result = {
        "net": net, "image": shape, "batch": task["batch"], "steps": args.steps,
        "when": time.strftime("%F %R"), "examples_per_second": rate,
        "seconds": seconds, "first_call_seconds": first, "success": success,
        "faster_peer": best, "logit_error": error, "versions": versions,
        "ratio": rate["advjax"] / rate[best] if best and "advjax" in rate else None,
    }  # fmt: skip
    shown = ("net", "examples_per_second", "ratio", "first_call_seconds", "success")
    print(json.dumps({k: result[k] for k in shown}), flush=True)
    return result


class Worker:
    """The other end of ``serve``: one process per side, both alive, one at work."""

    def __init__(self, side: str, threads: int) -> None:
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), JAX_PLATFORMS="cpu")
        env["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # helps both; read at start only
        env.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=2")
        command = [sys.executable, __file__, "--worker", side, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended at {command.get('cmd')}; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.communicate()


def serve(side: str, threads: int) -> None:
    """Answers one JSON line per line of input; libraries may print to stderr only."""
    out, sys.stdout = sys.stdout, sys.stderr
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    worker: Any = AdvjaxSide() if side == "advjax" else TorchSide(threads)
    for line in sys.stdin:
        command = json.loads(line)
        if command["cmd"] == "time":
            attack = worker.attack(command["what"], command.get("steps"))
            start = time.perf_counter()
            result = attack()
            seconds = time.perf_counter() - start
            answer = {"seconds": seconds, "success": worker.success(result)}
        else:
            answer = getattr(worker, command["cmd"])(command)
        print(json.dumps(answer), file=out, flush=True)


class AdvjaxSide:
    def prepare(self, task: dict[str, Any]) -> dict[str, Any]:
        """Draws weights, images and labels, and writes them down for the other side."""
        import jax
        import numpy as np
        from jax.tree_util import keystr, tree_flatten_with_path

        from advjax.attacks.pgd import PGD
        from advjax.balls import Linf
        from advjax.models import Classifier, create, init

        module = create(task["net"], **task["fields"])
        variables = init(module, jax.random.key(0), task["shape"])
        rng = np.random.default_rng(0)
        # Fresh BatchNorm statistics are 0 and 1: make them do something.
        shake = lambda v: np.asarray(v) + rng.uniform(0, 0.2, np.shape(v)).astype(np.float32)
        if "batch_stats" in variables:
            variables = {**variables, "batch_stats": jax.tree.map(shake, variables["batch_stats"])}
        self.model = Classifier(module, jax.tree.map(jax.numpy.asarray, variables))
        x = rng.random((task["batch"], *task["shape"]), np.float32)
        logits = np.asarray(jax.jit(lambda m, x: m(x))(self.model, x))
        self.x, self.y = jax.numpy.asarray(x), jax.numpy.asarray(logits.argmax(1), np.int32)
        # The last iterate, as the peers return it.
        self.pgd = lambda steps: PGD(
            ball=Linf(eps=task["eps"]), step_size=task["step_size"], steps=steps, best=False
        )
        self.steps = task["steps"]
        leaves = {
            keystr(p, simple=True, separator="/"): np.asarray(v)
            for p, v in tree_flatten_with_path(variables)[0]
        }
        np.savez(task["file"], x=x, y=np.asarray(self.y), logits=logits, **leaves)
        return {"versions": {"python": platform.python_version(), "jax": jax.__version__}}

    def attack(self, what: str, steps: int | None) -> Any:
        import jax

        pgd = self.pgd(steps or self.steps)
        return lambda: pgd(jax.random.key(1), self.model, self.x, self.y).block_until_ready()

    def success(self, x_adv: Any) -> float:
        import jax

        predict = jax.jit(lambda m, x: m(x).argmax(1))
        return float((predict(self.model, x_adv) != self.y).mean())


class TorchSide:
    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)

    def prepare(self, task: dict[str, Any]) -> dict[str, Any]:
        from importlib.metadata import version

        import numpy as np
        import torch
        from torch_networks import build

        self.task = task
        with np.load(task["file"]) as data:
            arrays = dict(data)
        self.x = torch.from_numpy(arrays.pop("x")).permute(0, 3, 1, 2).contiguous()
        self.y = torch.from_numpy(arrays.pop("y")).long()
        self.logits = torch.from_numpy(arrays.pop("logits"))
        self.model = build(task["net"], arrays, tuple(task["shape"]))
        self.last = build(task["net"], arrays, tuple(task["shape"]))
        self.last = self.last.to(memory_format=torch.channels_last)
        names = ("torch", "foolbox", "torchattacks")
        return {"versions": {name: version(name) for name in names}}

    def check(self, _: dict[str, Any]) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            error = (self.model(self.x) - self.logits).abs().max() / self.logits.abs().max()
        return {"error": float(error)}

    def attack(self, what: str, steps: int | None) -> Any:
        import torch

        library, _, layout = what.partition(" ")
        model, x, task = self.model, self.x, self.task
        if layout:
            model, x = self.last, x.to(memory_format=torch.channels_last)
        if library == "foolbox":
            import foolbox

            steps = steps or task["steps"]
            pgd = foolbox.attacks.LinfPGD(abs_stepsize=task["step_size"], steps=steps)
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
            # run() is the loop alone; calling the attack adds a forward pass to judge success.
            return lambda: pgd.run(wrapped, x, self.y, epsilon=task["eps"])
        import torchattacks

        steps = steps or task["steps"]
        attack = torchattacks.PGD(model, task["eps"], task["step_size"], steps, True)
        return lambda: attack(x, self.y)

    def success(self, x_adv: Any) -> float:
        import torch

        with torch.no_grad():
            return float((self.model(x_adv).argmax(1) != self.y).float().mean())


def machine(threads: int) -> dict[str, Any]:
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "when": time.strftime("%F")}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    m, results = report["machine"], list(report["results"].values())
    versions = results[-1]["versions"]
    lines = [
        "# PGD, adversarial examples per second",
        "",
        f"{m['cpu']}, {m['threads']} threads on each side, {m['when']}; "
        + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
        "Medians of interleaved rounds; peers in the better of the two memory formats.",
        "",
        "| network | image | batch | steps | advjax | Foolbox | torchattacks "
        "| advjax / faster peer | advjax, first call |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in results:
        rate = r["examples_per_second"]
        best = {
            lib: max((v for k, v in rate.items() if k.startswith(lib)), default=float("nan"))
            for lib in ("advjax", "foolbox", "torchattacks")
        }
        ratio = "" if r["ratio"] is None else f"**{r['ratio']:.2f}**"
        lines.append(
            f"| {r['net']} | {'x'.join(map(str, r['image']))} | {r['batch']} | {r['steps']} | "
            + " | ".join(f"{v:.3g}" for v in best.values())
            + f" | {ratio} | {r['first_call_seconds'].get('advjax', float('nan')):.1f} s |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
