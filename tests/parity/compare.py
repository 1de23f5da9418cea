"""advjax's attacks beside those of the PyTorch libraries: same weights, images and budgets.

    pip install torch==2.13.0 && pip install -e '.[peers]'
    pip install --no-deps torchattacks adv-lib adversarial-robustness-toolbox
    python tests/parity/compare.py --shared ../shared                 # all rows, 1,000 images
    python tests/parity/compare.py --shared ../shared --rows "ddn l2" "fab l1" --images 200

Each row writes what it found into the results file at once, so that a run that is stopped loses one
row. Images are a seeded random subset of the MNIST test set, success is judged by PyTorch for
the libraries and by JAX for advjax, and a distance counts only where the image is misclassified.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax import (
    L0,
    L1,
    L2,
    Attack,
    Ball,
    Linf,
    create,
    example_keys,
    from_torch,
    load,
    load_torch,
)
from advjax import attacks as a

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
import peers  # noqa: E402

RESULTS = HERE.parents[1] / "docs" / "parity.json"
TABLE = HERE.parents[1] / "docs" / "parity.md"
BATCH = 250  # images at a time, on either side
ACCURACY, DISTANCE = 0.003, 1.01  # what ours may lose: points of accuracy, share of the median


class Row(NamedTuple):
    """One attack on one network.

    Attributes:
      attack: ours.
      net: ``cln`` or ``adv``.
      ball: what is measured, and with an eps what is allowed.
      settings: what every library is told.
      budget: what the table says of it.
      next_class: success is reaching the class after the label.
      images: the most that are attacked, for the sake of slow peers.
      draws: runs whose mean counts, where the start of an attack moves its result.
    """

    attack: Callable[[], Attack]
    net: str
    ball: Ball
    settings: dict[str, Any]
    budget: str
    next_class: bool = False
    images: int | None = None
    draws: int = 1


def _fixed(
    make: Callable[[Ball], Attack], net: str, ball: Ball, budget: str, draws: int = 1
) -> Row:
    settings = {"eps": float(ball.eps)}
    return Row(lambda: make(ball), net, ball, settings, budget, draws=draws)


def _least(make: Callable[[], Attack], net: str, ball: Ball, budget: str) -> Row:
    return Row(make, net, ball, {}, budget)


ADV = Linf(0.3)
ROWS: dict[str, Row] = {
    "pgd linf": _fixed(
        lambda b: a.PGD(ball=b, step_size=0.01, steps=40, best=False), "adv", ADV, "40 steps of .01"
    ),
    "mim linf": _fixed(
        lambda b: a.MIM(ball=b, step_size=0.03, steps=10, best=False), "adv", ADV, "10 steps of .03"
    ),
    "ni-fgsm linf": _fixed(
        lambda b: a.NIFGSM(ball=b, step_size=0.03, steps=10), "adv", ADV, "10 steps of .03"
    ),
    "si-ni-fgsm linf": _fixed(
        lambda b: a.SIFGSM(ball=b, step_size=0.03, steps=10), "adv", ADV, "10 steps of .03"
    ),
    "apgd-ce linf": _fixed(lambda b: a.APGD(ball=b), "adv", ADV, "100 steps"),
    "apgd-ce l2": _fixed(
        lambda b: a.APGD(ball=b), "cln", L2(1.5), "100 steps, mean of 3 runs", draws=3
    ),
    "apgd-ce l1": _fixed(
        lambda b: a.APGD(ball=b, shrink=True), "cln", L1(8.0), "100 steps, three phases"
    ),
    "apgd-t linf": _fixed(
        lambda b: a.WorstOf(tuple(a.APGD(ball=b, rank=rank) for rank in range(1, 10))),
        "adv",
        ADV,
        "9 targets, 100 steps",
    ),
    "square linf": _fixed(lambda b: a.Square(ball=b, steps=1000), "adv", ADV, "1,000 queries"),
    "square l2": _fixed(lambda b: a.Square(ball=b, steps=1000), "adv", L2(2.0), "1,000 queries"),
    "fab linf": _least(lambda: a.FAB(ball=Linf(), steps=20), "cln", Linf(), "20 steps"),
    "fab l2": _least(lambda: a.FAB(ball=L2(), steps=20), "cln", L2(), "20 steps"),
    "fab l1": _least(lambda: a.FAB(ball=L1(), steps=20), "cln", L1(), "20 steps"),
    "deepfool l2": _least(lambda: a.DeepFool(ball=L2()), "cln", L2(), "50 steps"),
    "deepfool linf": _least(lambda: a.DeepFool(ball=Linf()), "cln", Linf(), "50 steps"),
    # 9,000 passes for each image, 3 to 6 s on a core.
    "cw l2": Row(
        lambda: a.CarliniWagner(ball=L2(), steps=1000),
        "cln",
        L2(),
        {},
        "9 searches of 1,000 steps",
        images=100,
    ),
    "cw l2 short": _least(
        lambda: a.CarliniWagner(ball=L2(), searches=5, steps=100, step_size=0.1),
        "cln",
        L2(),
        "5 searches of 100 steps of .1",
    ),
    "cw linf": _least(
        lambda: a.CarliniWagnerLinf(ball=Linf(), steps=1000, attempt=20, step_size=0.05),
        "cln",
        Linf(),
        "attempts of 20 steps of .05",
    ),
    "ead l1": _least(
        lambda: a.EAD(ball=L1(), searches=5, steps=50),
        "cln",
        L1(),
        "5 searches of 50 steps, beta .001",
    ),
    "ddn l2": _least(lambda: a.DDN(ball=L2()), "cln", L2(), "100 steps"),
    "fmn linf": _least(lambda: a.FMN(ball=Linf()), "cln", Linf(), "100 steps"),
    "fmn l2": _least(lambda: a.FMN(ball=L2()), "cln", L2(), "100 steps"),
    "fmn l1": _least(lambda: a.FMN(ball=L1()), "cln", L1(), "100 steps"),
    "fmn l0": _least(lambda: a.FMN(ball=L0()), "cln", L0(), "100 steps"),
    "sigma-zero l0": _least(lambda: a.SigmaZero(ball=L0(), steps=100), "cln", L0(), "100 steps"),
    "hopskipjump l2": _least(
        lambda: a.HopSkipJump(ball=L2(), queries=1_000),
        "cln",
        L2(),
        "5 iterations, some 1,000 queries",
    ),
    "jsma l0": Row(
        lambda: a.Targeted(a.JSMA(ball=L0())),
        "cln",
        L0(),
        {},
        "14.5 % of the pixels by 1, towards the next class",
        next_class=True,
    ),
    # The same on the other network; " adv" at the end of a name is not part of the peers'.
    "ddn l2 adv": _least(
        lambda: a.DDN(ball=L2(), levels=None), "adv", L2(), "100 steps, advjax without rounding"
    ),
    "fmn l2 adv": _least(lambda: a.FMN(ball=L2()), "adv", L2(), "100 steps"),
    "fmn linf adv": _least(lambda: a.FMN(ball=Linf()), "adv", Linf(), "100 steps"),
    "fab linf adv": _least(lambda: a.FAB(ball=Linf(), steps=20), "adv", Linf(), "20 steps"),
    "deepfool linf adv": _least(lambda: a.DeepFool(ball=Linf()), "adv", Linf(), "50 steps"),
}


def peers_of(name: str) -> dict[str, peers.Peer]:
    """The peers of a row."""
    return peers.PEERS.get(name.removesuffix(" adv"), {})


class Outcome(NamedTuple):
    """What an attack left: share still right, median distance over all (infinite: not fooled)."""

    accuracy: float
    median: float
    seconds: float


def networks(shared: Path) -> dict[str, dict[str, np.ndarray]]:
    folder = shared / "weights"
    return {name: load_torch(folder / f"mnist_lenet5_{name}.pt") for name in ("cln", "adv")}


def images(shared: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A seeded random subset of MNIST's test images, float, and its labels."""
    test = load("mnist", "test", data_dir=shared / "tfds")
    pick = np.random.default_rng(0).permutation(len(test))[:n]
    return np.asarray(test.x[pick] / np.float32(255)), np.asarray(test.y[pick], np.int32)


def batches(n: int) -> list[slice]:
    return [slice(i, i + BATCH) for i in range(0, n, BATCH)]


def judge(
    row: Row, x: np.ndarray, y: np.ndarray, x_adv: np.ndarray, answer: np.ndarray, seconds: float
) -> Outcome:
    """Feasible success only: an image outside box or ball does not count."""
    wrong = answer == (y + 1) % 10 if row.next_class else answer != y
    distance = np.asarray(row.ball.size(jnp.asarray(x_adv - x)))
    inside = (x_adv >= -1e-6).all(axis=(1, 2, 3)) & (x_adv <= 1 + 1e-6).all(axis=(1, 2, 3))
    eps = float(row.ball.eps)
    success = wrong & inside & (distance <= eps * (1 + 1e-4) + 1e-5)
    return Outcome(
        accuracy=float(1 - success.mean()),
        median=float(np.median(np.where(success, distance, np.inf))),
        seconds=seconds,
    )


def mean(outcomes: list[Outcome]) -> Outcome:
    return Outcome(*(float(np.mean(values)) for values in zip(*outcomes, strict=True)))


def ours(row: Row, tensors: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> Outcome:
    model = from_torch(create("lenet5"), tensors, (28, 28, 1))
    attack, labels = row.attack(), (y + 1) % 10 if row.next_class else y

    def once(seed: int) -> Outcome:
        keys = example_keys(jax.random.key(seed), len(x))
        start = time.perf_counter()
        x_adv = np.concatenate([attack(keys[b], model, x[b], labels[b]) for b in batches(len(x))])
        seconds = time.perf_counter() - start
        answer = np.asarray(jnp.argmax(model(jnp.asarray(x_adv)), axis=1))
        return judge(row, x, y, x_adv, answer, seconds)

    return mean([once(seed) for seed in range(row.draws)])


def theirs(
    name: str, peer: str, row: Row, tensors: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray
) -> Outcome:
    import torch

    net = peers.network(tensors)
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(y).long()
    attack = peers_of(name)[peer]

    def once(seed: int) -> Outcome:
        torch.manual_seed(seed)
        np.random.seed(seed)
        start = time.perf_counter()
        found = torch.cat(
            [attack(net, images[b], labels[b], row.settings).detach() for b in batches(len(x))]
        )
        seconds = time.perf_counter() - start
        with torch.no_grad():
            answer = net(found).argmax(1).numpy()
        return judge(row, x, y, found.numpy().transpose(0, 2, 3, 1), answer, seconds)

    return mean([once(seed) for seed in range(row.draws)])


def compare(
    name: str, tensors: dict[str, dict[str, np.ndarray]], x: np.ndarray, y: np.ndarray
) -> dict[str, Outcome | str]:
    """advjax and every peer on one row; what a peer raised instead of a result is told."""
    row = ROWS[name]
    x, y = x[: row.images], y[: row.images]
    found: dict[str, Outcome | str] = {"advjax": ours(row, tensors[row.net], x, y)}
    for peer in peers_of(name):
        try:
            found[peer] = theirs(name, peer, row, tensors[row.net], x, y)
        except Exception as error:  # a peer's defect is a result
            found[peer] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return found


def shortfall(name: str, found: dict[str, Outcome | str]) -> str | None:
    """What advjax loses against the best peer beyond the tolerance, if anything."""
    mine = found["advjax"]
    rest = [o for peer, o in found.items() if peer != "advjax" and isinstance(o, Outcome)]
    assert isinstance(mine, Outcome)
    if not rest:
        return None
    if np.isinf(float(ROWS[name].ball.eps)):
        best = min(o.median for o in rest)
        if mine.median > DISTANCE * best:
            return f"median distance {mine.median:.4g}, the best peer's is {best:.4g}"
    else:
        accuracy = min(o.accuracy for o in rest)
        if mine.accuracy > accuracy + ACCURACY:
            return f"leaves {mine.accuracy:.2%}, the best peer {accuracy:.2%}"
    return None


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    libraries = ["advjax", *peers.LIBRARIES]
    lines = [
        "| attack | network | budget | images | " + " | ".join(libraries) + " | advjax |",
        "|---" * (5 + len(libraries)) + "|",
    ]
    for name, result in results["rows"].items():
        row = ROWS[name]
        least = np.isinf(float(row.ball.eps))
        budget = row.budget if least else f"eps {float(row.ball.eps):g}, {row.budget}"
        cells = []
        for library in libraries:
            found = result["found"].get(library)
            if found is None:
                cells.append("")
            elif isinstance(found, str):
                cells.append(f"fails ({found.split(':')[0]})")
            else:
                accuracy, median, _ = found
                cells.append(f"{median:.4g} ({1 - accuracy:.1%})" if least else f"{accuracy:.1%}")
        lines.append(
            f"| {name} | {row.net} | {budget} | {result['images']} | "
            + " | ".join(cells)
            + f" | {result['shortfall'] or 'holds'} |"
        )
    return "\n".join(lines) + "\n"


def write_table(results: dict[str, Any]) -> None:
    """Puts the table into docs/parity.md, between what is written there by hand."""
    page = TABLE.read_text() if TABLE.exists() else f"# Parity\n\n{_MARK}\n{_MARK}\n"
    before, _, after = page.split(_MARK)
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    TABLE.write_text(f"{before}{_MARK}\n{versions}.\n\n{table(results)}{_MARK}{after}")


_MARK = "<!-- written by tests/parity/compare.py -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="has tfds/ and weights/")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="default: all")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    tensors = networks(args.shared)
    x, y = images(args.shared, args.images)
    results = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    results["versions"] = {"JAX": jax.__version__, **peers.versions()}
    for name in args.rows:
        found = compare(name, tensors, x, y)
        results["rows"][name] = {
            "images": min(args.images, ROWS[name].images or args.images),
            "found": found,
            "shortfall": shortfall(name, found),
        }
        results["rows"] = {row: results["rows"][row] for row in ROWS if row in results["rows"]}
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        if args.out == RESULTS:
            write_table(results)
        print(name, json.dumps(results["rows"][name]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
