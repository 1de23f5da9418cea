"""Attack throughput beside the PyTorch libraries: adversarial examples per second on CPU.

The same weights, images, steps and thread count for all; logits are compared before anything is
timed. JAX and PyTorch run in two processes that take turns, call by call, so that a change in the
machine's mood hits both; each number is the median over the rounds, compilation apart. PyTorch is
tried in both memory formats and its best counts; its parameters ask for no gradient, its ReLUs are
in place, and PGD is called through its bare loops. Beside the time stands what was reached: the
share fooled and, for minimum-norm attacks, the median distance.

    pip install torch==2.13.0 && pip install -e '.[peers]'
    pip install --no-deps torchattacks adv-lib adversarial-robustness-toolbox
    python benchmarks/attack_throughput.py                         # PGD-40 everywhere, 15 minutes
    python benchmarks/attack_throughput.py --nets mnist_madry --steps 10 --repeats 3
    python benchmarks/attack_throughput.py --attacks all --nets lenet5 --shared ../shared

``--shared`` names a folder with MNIST (``tfds/``) and published weights (``weights/``): ``lenet5``
is then the adversarially trained network on real images. Without it weights and images are random.
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
    "lenet5": ({}, (28, 28, 1), 128, 0.3, 0.01),
    "densenet48": ({}, (48, 48, 1), 64, 8 / 255, 2 / 255),
    "convnet48": ({}, (48, 48, 1), 64, 8 / 255, 2 / 255),
    "resnet18": ({}, (32, 32, 3), 32, 8 / 255, 2 / 255),
    "densenet121": ({}, (32, 32, 3), 8, 8 / 255, 2 / 255),
}
# The row of peers.py that holds the peers, and their settings; what they are told beside the step
# count there is in peers.py.
ATTACKS: dict[str, str] = {
    "pgd": "pgd linf", "apgd-ce": "apgd-ce linf", "deepfool": "deepfool l2", "fab": "fab linf",
    "ddn": "ddn l2", "fmn": "fmn l2", "cw": "cw l2", "cw-1x100": "cw l2 one search",
    "jsma": "jsma l0", "square": "square linf", "square-200": "square linf 200",
    "autoattack": "autoattack linf",
}  # fmt: skip
FIXED = ("pgd", "apgd-ce", "square", "square-200", "autoattack")  # else the smallest distance
PGD_CONTENDERS = (
    "advjax",
    "Foolbox",
    "Foolbox channels_last",
    "torchattacks",
    "torchattacks channels_last",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nets", default=",".join(NETS), help="comma-separated: %(default)s")
    parser.add_argument(
        "--attacks", default="pgd", help=f"comma-separated, or all: {', '.join(ATTACKS)}"
    )
    parser.add_argument("--shared", type=Path, help="a folder with tfds/ and weights/, for lenet5")
    parser.add_argument(
        "--batch", type=int, help="images at a time; a size per network if not given"
    )
    parser.add_argument("--steps", type=int, default=40, help="of pgd; the others have their own")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians are reported")
    parser.add_argument("--threads", type=int, default=2, help="cores for either side")
    parser.add_argument("--contenders", help="comma-separated; by default all that have the attack")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "attack_throughput.json")
    parser.add_argument("--worker", choices=("advjax", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args.worker, args.threads)
        return
    attacks = list(ATTACKS) if args.attacks == "all" else args.attacks.split(",")
    for what, given, known in (
        ("network", args.nets.split(","), NETS),
        ("attack", attacks, ATTACKS),
    ):
        for name in given:
            if name not in known:
                parser.error(f"unknown {what} {name!r}; taken are {', '.join(known)}")
    results = json.loads(args.out.read_text())["results"] if args.out.exists() else {}
    for net in args.nets.split(","):
        for attack in attacks:  # what was not run again keeps its result
            results[f"{net} {attack}"] = compare(net, attack, args)
            write(results, args)
    print(args.out.with_suffix(".md").read_text())


def write(results: dict[str, Any], args: argparse.Namespace) -> None:
    """The results so far, in the order of networks and attacks."""
    order = [f"{net} {attack}" for net in NETS for attack in ATTACKS]
    results = {name: results[name] for name in order if name in results}
    report = {"machine": machine(args.threads), "results": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(report))


def compare(net: str, attack: str, args: argparse.Namespace) -> dict[str, Any]:
    """One attack on one network: all contenders in turn, ``args.repeats`` times."""
    from peers import PEERS

    contenders = ["advjax", *PEERS[ATTACKS[attack]]]
    if attack == "pgd":
        contenders = list(PGD_CONTENDERS)
    if args.contenders:
        contenders = [c for c in args.contenders.split(",") if c in contenders]
    fields, shape, batch, eps, step_size = NETS[net]
    with tempfile.TemporaryDirectory() as folder:
        task = {
            "net": net, "attack": attack, "fields": fields, "shape": shape, "eps": eps,
            "batch": args.batch or batch, "step_size": step_size, "steps": args.steps,
            "file": os.path.join(folder, "task.npz"),
            "shared": str(args.shared.resolve()) if args.shared and net == "lenet5" else None,
        }  # fmt: skip
        ours = Worker("advjax", args.threads)
        told = ours.ask(cmd="prepare", **task)
        theirs = Worker("torch", args.threads)
        versions = told["versions"] | theirs.ask(cmd="prepare", **task)["versions"]
        error = theirs.ask(cmd="check")["error"]
        if not error < 1e-4:
            raise SystemExit(f"{net}: PyTorch's logits differ by {error} of the largest; stopped")
        side = {c: ours if c == "advjax" else theirs for c in contenders}
        # PGD's first call is one step, which compiles everything; the others' is a whole run.
        one = {"steps": 1} if attack == "pgd" else {}
        first = {c: side[c].ask(cmd="time", what=c, **one)["seconds"] for c in contenders}
        seconds: dict[str, list[float]] = {c: [] for c in contenders}
        reached: dict[str, Any] = {}
        for _ in range(args.repeats):
            for c in contenders:
                answer = side[c].ask(cmd="time", what=c)
                seconds[c].append(answer.pop("seconds"))
                reached[c] = answer
        ours.close(), theirs.close()
    median = {c: statistics.median(s) for c, s in seconds.items()}
    rate = {c: task["batch"] / s for c, s in median.items()}
    peers = [c for c in contenders if c != "advjax"]
    best = max(peers, key=rate.__getitem__) if peers else None
    result = {
        "net": net, "attack": attack, "image": shape, "batch": task["batch"],
        "steps": args.steps if attack == "pgd" else None,
        "when": time.strftime("%F %R"), "examples_per_second": rate,
        "seconds": seconds, "first_call_seconds": first, "reached": reached,
        "faster_peer": best, "logit_error": error, "versions": versions,
        "ratio": rate["advjax"] / rate[best] if best and "advjax" in rate else None,
    }  # fmt: skip
    shown = ("net", "attack", "examples_per_second", "ratio", "first_call_seconds", "reached")
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
            answer = {"seconds": seconds, **worker.reached(result)}
        else:
            answer = getattr(worker, command["cmd"])(command)
        print(json.dumps(answer), file=out, flush=True)


class AdvjaxSide:
    def prepare(self, task: dict[str, Any]) -> dict[str, Any]:
        """Draws weights, images and labels, and writes them down for the other side."""
        import jax
        import numpy as np
        from jax.tree_util import keystr, tree_flatten_with_path

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
        if task["shared"]:
            x = self.published(Path(task["shared"]), task)
            variables = self.model.variables
            logits = np.asarray(jax.jit(lambda m, x: m(x))(self.model, x))
        self.task = task
        leaves = {
            keystr(p, simple=True, separator="/"): np.asarray(v)
            for p, v in tree_flatten_with_path(variables)[0]
        }
        np.savez(task["file"], x=x, y=np.asarray(self.y), logits=logits, **leaves)
        return {"versions": {"python": platform.python_version(), "jax": jax.__version__}}

    def published(self, shared: Path, task: dict[str, Any]) -> Any:
        """Real images and labels, and the adversarially trained network."""
        import jax.numpy as jnp
        import numpy as np

        from advjax import create, from_torch, load, load_torch

        test = load("mnist", "test", data_dir=shared / "tfds")
        pick = np.random.default_rng(0).permutation(len(test))[: task["batch"]]
        x = np.asarray(test.x[pick] / np.float32(255))
        self.x, self.y = jnp.asarray(x), jnp.asarray(test.y[pick], jnp.int32)
        tensors = load_torch(shared / "weights" / "mnist_lenet5_adv.pt")
        self.model = from_torch(create("lenet5"), tensors, (28, 28, 1))
        return x

    def attack(self, what: str, steps: int | None) -> Any:
        import jax

        from advjax import L0, L2, Linf
        from advjax import attacks as a

        task = self.task
        ball = Linf(task["eps"])
        make = {
            # The last iterate, as the peers return it.
            "pgd": lambda: a.PGD(
                ball=ball, step_size=task["step_size"], steps=steps or task["steps"], best=False
            ),
            "apgd-ce": lambda: a.APGD(ball=ball),
            "deepfool": lambda: a.DeepFool(ball=L2()),
            "fab": lambda: a.FAB(ball=Linf(), steps=20),
            "ddn": lambda: a.DDN(ball=L2()),
            "fmn": lambda: a.FMN(ball=L2()),
            "cw": lambda: a.CarliniWagner(ball=L2()),
            "cw-1x100": lambda: a.CarliniWagner(
                ball=L2(), searches=1, steps=100, abort_early=False
            ),
            "jsma": lambda: a.JSMA(ball=L0()),
            "square": lambda: a.Square(ball=ball, steps=1000),
            "square-200": lambda: a.Square(ball=ball, steps=200),
            "autoattack": lambda: a.AutoAttack(ball=ball),
        }[task["attack"]]()
        y = self.y
        if task["attack"] == "jsma":  # towards one class, as the peers
            make, y = a.Targeted(make), (self.y + 1) % 10
        return lambda: make(jax.random.key(1), self.model, self.x, y).block_until_ready()

    def reached(self, x_adv: Any) -> dict[str, Any]:
        import jax
        import numpy as np

        answer = jax.jit(lambda m, x: m(x).argmax(1))(self.model, x_adv)
        change = np.asarray(x_adv - self.x)
        return reached(self.task["attack"], change, np.asarray(answer), np.asarray(self.y))


def reached(attack: str, change: Any, answer: Any, y: Any) -> dict[str, Any]:
    """The share fooled, and for minimum-norm attacks the median distance over all.

    JSMA aims at the next class; the others are content with any wrong one.
    """
    import numpy as np

    wrong = answer == (y + 1) % 10 if attack == "jsma" else answer != y
    out: dict[str, Any] = {"success": float(wrong.mean())}
    if attack not in FIXED:
        flat = change.reshape(len(change), -1)
        norms = {"jsma": lambda: (flat != 0).sum(1), "fab": lambda: np.abs(flat).max(1)}
        size = norms.get(attack, lambda: np.sqrt((flat**2).sum(1)))()
        median = float(np.median(np.where(wrong, size, np.inf)))
        out["median"] = median if np.isfinite(median) else None
    return out


class TorchSide:
    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)

    def prepare(self, task: dict[str, Any]) -> dict[str, Any]:
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
        from peers import versions

        return {"versions": versions()}

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
        if task["attack"] != "pgd":
            from peers import PEERS

            attack = PEERS[ATTACKS[task["attack"]]][library]
            settings = {"eps": task["eps"]} if task["attack"] in FIXED else {}
            return lambda: attack(model, x, self.y, settings).detach()
        if library == "Foolbox":
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

    def reached(self, x_adv: Any) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            answer = self.model(x_adv).argmax(1).numpy()
        change = (x_adv - self.x).numpy()
        return reached(self.task["attack"], change, answer, self.y.numpy())


def machine(threads: int) -> dict[str, Any]:
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "when": time.strftime("%F")}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    m, results = report["machine"], list(report["results"].values())
    versions = max(results, key=lambda r: str(r["when"]))["versions"]
    lines = [
        "# Adversarial examples per second",
        "",
        f"{m['cpu']}, {m['threads']} threads on each side; "
        + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
        "Medians of interleaved rounds; beside the rate the share fooled, and for minimum-norm",
        "attacks the median distance. PGD: peers in the better of the two memory formats.",
        "",
        "| network | attack | batch | advjax | peers | advjax / fastest peer | first call | when |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in results:
        shown = {}
        for name, rate in sorted(r["examples_per_second"].items(), key=lambda item: item[1]):
            got = r["reached"][name]
            median = f", {got['median']:.4g}" if got.get("median") else ""
            shown[name.split()[0]] = f"{rate:.3g} ({got['success']:.1%}{median})"
        mine = shown.pop("advjax", "")
        ratio = "" if r["ratio"] is None else f"**{r['ratio']:.2f}**"
        attack = r["attack"] + (f"-{r['steps']}" if r["steps"] else "")
        lines.append(
            f"| {r['net']} | {attack} | {r['batch']} | {mine} | "
            + "; ".join(f"{name} {text}" for name, text in shown.items())
            + f" | {ratio} | {r['first_call_seconds'].get('advjax', float('nan')):.1f} s "
            f"| {r['when']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
