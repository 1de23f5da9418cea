"""AutoAttack beside a recorded run of the reference: who stands after each stage, and the seconds.

The record is of the authors' code on 500 seeded MNIST test images and a published adversarially
trained LeNet (L-inf, eps .3), two cores. Times are of other machines: the ratio says how much work
was saved more than how fast the machine is; the count of images is exact.

    python benchmarks/autoattack_reference.py --shared ../shared      # about 7 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=2")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from advjax import AutoAttack, Linf, create, example_keys, from_torch, load_torch  # noqa: E402
from advjax.answers import fold_in_each  # noqa: E402

HERE = Path(__file__).resolve().parent
STAGES = {"apgd_ce": 1, "apgd_t": 9, "fab_t": 9, "square": 1}  # parts of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="has weights/ and golden/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stages", nargs="+", default=list(STAGES), help="the first of %(default)s"
    )
    args = parser.parse_args()
    tensors = load_torch(args.shared / "weights" / "mnist_lenet5_adv.pt")
    model = from_torch(create("lenet5"), tensors, (28, 28, 1))
    images = np.load(args.shared / "golden" / "mnist_test_500.npz")["image"]
    record = np.load(args.shared / "golden" / "autoattack_lenet_adv_500.npz")
    x = jnp.asarray(images.reshape(-1, 28, 28, 1) / np.float32(255))
    y = jnp.asarray(record["label"], jnp.int32)
    keys = example_keys(jax.random.key(args.seed), len(x))
    standing = np.ones(len(x), bool)
    parts = list(AutoAttack(ball=Linf(0.3)).stages())
    rows = []
    for stage in args.stages:
        start = time.perf_counter()
        for _ in range(STAGES[stage]):
            tag, attack = parts.pop(0)
            left = np.flatnonzero(standing)
            drawn = keys[left] if tag is None else fold_in_each(keys[left], tag)
            found = attack.run(drawn, model, x[left], y[left])
            standing[left[np.asarray(found.success)]] = False
        seconds, reference = time.perf_counter() - start, record[f"after_{stage}"]
        rows.append(
            {
                "stage": stage,
                "standing": int(standing.sum()),
                "reference": int(reference.sum()),
                "differing": int((standing != reference).sum()),
                "seconds": seconds,
                "reference_seconds": float(record[f"seconds_{stage}"]),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    report = table(rows, args.seed)
    print(report)
    if len(rows) == len(STAGES):
        (HERE / "results" / "autoattack_reference.md").write_text(report)


def table(rows: list[dict[str, float]], seed: int) -> str:
    total, theirs = (sum(r[key] for r in rows) for key in ("seconds", "reference_seconds"))
    lines = [
        "# AutoAttack beside the recorded reference",
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, JAX "
        f"{jax.__version__}, seed {seed}, {time.strftime('%F')}; compilation included.",
        "",
        "| after | standing | reference | differing images | seconds | reference | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['stage']} | {r['standing']} | {r['reference']} | {r['differing']} "
            f"| {r['seconds']:.1f} | {r['reference_seconds']:.1f} "
            f"| {r['seconds'] / r['reference_seconds']:.2f} |"
        )
    lines.append(f"| in all | | | | {total:.0f} | {theirs:.0f} | **{total / theirs:.2f}** |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
