"""The figures published for AdverTorch's two MNIST networks, beside what advjax finds on them.

    python tests/parity/published.py --shared ../shared                  # 40 minutes on 2 cores
    python tests/parity/published.py --shared ../shared --rows "ddn adv"

Needs no other library. Writes docs/published.json and, from it, docs/published.md; rows that are
not run again keep what they found. Fixed budgets: the share of all test images still classified
right. Minimum norm: the mean L2, L1 or L-inf distance of the images that are classified right and
were found, a seeded random subset of the test set.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from compare import batches, images, networks

from advjax import L1, L2, Attack, Linf, create, example_keys, from_torch
from advjax import attacks as a

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "published.json"
ALL = 10_000


class Row(NamedTuple):
    """One figure.

    Attributes:
      make: the attack; None for none.
      net: ``cln`` or ``adv``.
      budget: what the table says of it.
      published: the published figure, percent right or the mean distance; None where there is none.
      source: who published it.
      n: images of the test set.
      all_targets: run towards every class but the label; the mean is the share of pixels changed.
    """

    make: Callable[[], Attack] | None
    net: str
    budget: str
    published: float | None
    source: str
    n: int
    all_targets: bool = False


def _pgd(steps: int, random_start: bool) -> Callable[[], Attack]:
    return lambda: a.PGD(
        ball=Linf(0.3), step_size=0.01, steps=steps, random_start=random_start, best=False
    )


_TORCH, _DDN, _FAB = "AdverTorch", "Rony et al. 2019", "Croce & Hein 2020 (FAB)"
_HERE = "an independent run in PyTorch"
ROWS: dict[str, Row] = {
    **{
        f"{name} {net}": Row(make, net, budget, figure, source, ALL)
        for name, make, budget, source, figures in (
            ("clean", None, "", _TORCH, (98.89, 98.64)),
            ("fgsm", lambda: a.FGSM(ball=Linf(0.3)), "L-inf .3", _HERE, (0.72, 96.52)),
            ("pgd-40", _pgd(40, False), "L-inf .3, step .01, from the image", _HERE, (0.0, 93.29)),
            ("pgd-50", _pgd(50, True), "L-inf .3, step .01, random start", _HERE, (0.0, 93.77)),
        )
        for net, figure in zip(("cln", "adv"), figures, strict=True)
    },
    "ddn cln": Row(lambda: a.DDN(ball=L2(), steps=1000), "cln", "1,000 steps", 1.380, _DDN, 1000),
    "ddn adv": Row(lambda: a.DDN(ball=L2(), steps=1000), "adv", "1,000 steps", 1.917, _DDN, 2000),
    "fab linf cln": Row(
        lambda: a.FAB(ball=Linf(), steps=20), "cln", "20 steps", 0.1092, _FAB, 1000
    ),
    "fab l2 cln": Row(lambda: a.FAB(ball=L2(), steps=20), "cln", "20 steps", 1.412, _FAB, 1000),
    "fab l1 cln": Row(lambda: a.FAB(ball=L1(), steps=20), "cln", "20 steps", 8.365, _FAB, 1000),
    "jsma cln": Row(
        lambda: a.JSMA(),
        "cln",
        "at most 14.5 % of the pixels by 1, every target",
        4.02,
        "Papernot et al. 2016, own network, 97.1 % found",
        100,
        all_targets=True,
    ),
    "fmn l2 cln": Row(lambda: a.FMN(ball=L2(), steps=1000), "cln", "1,000 steps", None, "", 1000),
    "deepfool l2 cln": Row(lambda: a.DeepFool(ball=L2()), "cln", "50 steps", None, "", 1000),
    "cw l2 cln": Row(
        lambda: a.CarliniWagner(ball=L2()), "cln", "9 searches of 1,000 steps", None, "", 250
    ),
}


def measure(row: Row, model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """What the attack leaves right, and the mean distance of what it found."""
    attack = None if row.make is None else row.make()
    start, keys = time.perf_counter(), example_keys(jax.random.key(0), len(x))
    right = np.concatenate([np.argmax(model(jnp.asarray(x[b])), axis=1) == y[b] for b in _parts(x)])
    if attack is None:
        return {"right": float(right.mean()), "seconds": time.perf_counter() - start}
    if row.all_targets:
        _, record = a.every_target(attack, keys, model, x, y)
        aimed, share = np.asarray(record.success)[:, right], 100 / x[0].size
        distance = share * np.asarray(record.distance)[:, right]
        return {
            "right": float((~aimed).mean()),
            "found": int(aimed.sum()),
            "of": aimed.size,
            "mean": float(distance[aimed].mean()),
            "most": float(distance.max()),
            "seconds": time.perf_counter() - start,
        }
    records = [attack.run(keys[b], model, x[b], y[b]) for b in _parts(x)]
    found = np.concatenate([record.success for record in records])
    distance = np.concatenate([record.distance for record in records])
    first, distance = distance[:250][(found & right)[:250]], distance[found & right]
    return {
        "right": float((~found).mean()),
        "found": int((found & right).sum()),
        "of": int(right.sum()),
        "mean": float(distance.mean()),
        "median": float(np.median(distance)),
        "mean_of_250": float(first.mean()),
        "seconds": time.perf_counter() - start,
    }


def _parts(x: np.ndarray) -> list[slice]:
    return batches(len(x))


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| attack | network | budget | images | published | advjax | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, got in results.items():
        row = ROWS[name]
        norm = row.n != ALL
        value = got["mean"] if norm else 100 * got["right"]
        unit = " % of the pixels" if row.all_targets else ""
        shown = f"{value:.2f} %"
        if norm:
            shown = f"{value:.4g}{unit} ({got['found']} of {got['of']} found)"
            if row.n > 250 and "mean_of_250" in got:
                shown += f", first 250 {got['mean_of_250']:.4g}"
        published = difference = ""
        if row.published is not None:
            published = f"{row.published:g}{'' if norm else ' %'} ({row.source})"
            gap = value / row.published - 1 if norm else value - row.published
            difference = f"{gap:+.1%}" if norm else f"{gap:+.2f} points"
        lines.append(
            f"| {name.removesuffix(row.net).strip()} | {row.net} | {row.budget} | {row.n:,} | "
            f"{published} | {shown} | {difference} |"
        )
    return "\n".join(lines) + "\n"


def page(results: dict[str, Any]) -> str:
    return _PAGE.format(version=jax.__version__, table=table(results))


_PAGE = """# Published figures

AdverTorch's two MNIST networks, naturally (`cln`) and adversarially (`adv`) trained. Fixed budgets:
percent of all test images still classified right. Minimum norm: mean distance, in the attack's
norm, of the images that are classified right and were found, a seeded random subset. Made by
`python tests/parity/published.py`, JAX {version}.

{table}
FGSM leaves less of the natural network than in PyTorch: advjax's cross-entropy has a gradient where
the usual form's has rounded to zero (with ``jax.nn.log_softmax`` it leaves 1.12 %). Distances of a
seeded 1,000 or 2,000 of the 10,000 test images; the publishers' are of images of their choice.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="has tfds/ and weights/")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="default: all")
    args = parser.parse_args()
    tensors = networks(args.shared)
    models = {net: from_torch(create("lenet5"), tensors[net], (28, 28, 1)) for net in tensors}
    x, y = images(args.shared, ALL)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.rows:
        row = ROWS[name]
        results[name] = measure(row, models[row.net], x[: row.n], y[: row.n])
        results = {name: results[name] for name in ROWS if name in results}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page(results))
        print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
