"""Depth, BatchNorm, dropout, filters, batch size and initialisation of a network, one by one.

A lecture's study of networks that tell gender from a 48x48 grey face, rebuilt as a sweep. Its faces
are not public: here two garments that are hard to tell apart take their place, T-shirts and shirts
of Fashion-MNIST enlarged to 48x48, with the study's majority of 54.3 %, which is what a dead
network scores. A folder ``CLASS/*.png`` of faces drops in with ``--data``. Every cell is attacked
too. Which of the study's claims hold is told by ``python experiments/meta_parameters.py FOLDER``.

Source: the tables of a lecture on convolutional networks (Ph. Gentric), 100,000 faces, one run a
cell; what its initialisation was is not said, ``glorot`` and ``truncated`` are those of its time.

    advjax sweep experiments/meta_parameters.py --data-dir tensorflow_datasets --workers 2
    python experiments/meta_parameters.py sweeps/meta_parameters
    advjax sweep experiments/meta_parameters.py --data faces --folder sweeps/faces --workers 2
    advjax sweep experiments/meta_parameters.py --table full --images 100000 --epochs 20 \\
        --memory-gb 11 --folder sweeps/full    # both sheets of the study, 3 seeds, for one GPU

Hardware and time: 42 minutes in two workers on 2 CPU cores for 147 cells of 3,000 images and 4
epochs; 70 where other work shared the cores. All four rates of dropout are tried with 2
convolutions of 16 filters a block, 7 convolutions on few columns and 20 on one, with and without a
second batch size.

Expected: none of the study's claims hangs on its 100,000 faces, but 184 steps are few; what kills a
network and what saves it should be seen, fine differences between those that learn need not.

Measured, seeds 0 and 1 (0 to 2 for the first claim), accuracy in percent on 400 test images:

    the study says                       here
    deeper is better                     no: dense, 1, 2, 4 convolutions a block 80.8, 80.7, 80.2
    dropout is best from .05 to .3       no: 0 83.1, .15 80.9, .3 80.7, .5 75.9
    dropout kills small batches          no: rate .5, 1, 2, 4 convolutions, batch 64 79.4, 77.4,
                                         57.7, batch 256, a quarter of the steps, 73.5, 54.5, 56.0
    KO for big networks and batches      in part: 8.8 to 11.1 GB tell 16 of 17 apart, by shapes
    BatchNorm for 8 convolutions on      later: 4 filters die at 8 on one seed and at 16 on both, 16
                                         filters at 28 on one; 8 and 16 of 16 filters reach 81.2
                                         and 79.2; BatchNorm saves 16 of 4 filters (77.2), at 28 in
                                         part (62.9)
    the same, truncated normal           no: 8 convolutions reach 79.1 and 80.1
    the same, He's initialisation        no: 16 filters 81.6, 80.1; 4 filters on one seed of two
    bigger batches for 80 convolutions   no: dead with 4 filters in both, 54.5 and 53.0
    dense networks need no BatchNorm     yes: 28 convolutions of 4 filters 83.6, plain 54.2
    accurate networks are vulnerable     yes, weakly: rank correlation +.28, chance within .19

Under PGD of eps 4/255 one thing matters: between cells that differ in nothing else, BatchNorm costs
45.8 +- 3.9 points and changes clean accuracy by -1.2 +- 2.2; 71 becomes 0 in a dense network that
tells 83 of 100 clean images without it and 85 with it. He's weights cost 13.6 +- 2.3; the first .15
of dropout gains 11.0 +- 6.3 (docs/meta_parameters.png). With BatchNorm, dropout of .3 leaves less
than the majority, 45.8: the running variance under dropout is not that without (Li et al., CVPR
2019); with the statistics of a batch such a network, trained for 6 epochs, had 81. An earlier run
on another machine had every verdict alike, and 45.7 +- 3.8 for BatchNorm.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from advjax import PGD, Linf, Madry, Standard, Training, create, load
from advjax.data import Dataset
from advjax.sweeps import Cell, Grid, Store, choices
from advjax.sweeps.grid import canonical
from advjax.training import optimizer
from advjax.training.memory import predicted_bytes

SIZE = (48, 48)
PAIRS = {"fashion_mnist": ("T-shirt/top", "Shirt")}
PLAIN, DENSE = ["convnet48"], ["densenet48"]
OLD, MODERN, TRUNCATED = ["glorot"], ["he"], ["truncated"]
NO, BOTH, YES = [False], [False, True], [True]
# What an hour of two cores is spent on; the deeper, the fewer columns.
AXES = ("network", "initialiser", "batch_norm", "filters", "convs", "dropout", "batch_size", "seed")
REDUCED = (
    (PLAIN, OLD, BOTH, [4, 16], [1, 2, 4], [0.0, 0.3], [64], [0, 1]),
    (PLAIN, OLD, BOTH, [16], [2], [0.15, 0.5], [64], [0, 1]),
    (PLAIN, OLD, BOTH, [4], [7], [0.0], [64], [0, 1]),
    (PLAIN, OLD, NO, [16], [7], [0.0], [64], [0, 1]),
    (PLAIN, MODERN, NO, [4, 16], [1, 2, 4], [0.0], [64], [0, 1]),
    (PLAIN, MODERN, NO, [4], [7], [0.0], [64], [0, 1]),
    (PLAIN, MODERN, NO, [16], [2], [0.3], [64], [0, 1]),
    (PLAIN, TRUNCATED, NO, [4, 16], [2], [0.0, 0.3], [64], [0, 1]),
    (DENSE, OLD, NO, [4, 16], [1, 2], [0.0, 0.3], [64], [0, 1]),
    (DENSE, OLD, NO, [4, 16], [4], [0.3], [64], [0, 1]),
    (DENSE, OLD, NO, [16], [1, 2, 4], [0.3], [64], [2]),
    (DENSE, OLD, NO, [16], [2], [0.15, 0.5], [64], [0, 1]),
    (DENSE, OLD, NO, [4], [7], [0.0], [64], [0, 1]),
    (DENSE, OLD, NO, [4], [1, 2, 4], [0.5], [64, 256], [0, 1]),
    (DENSE, OLD, YES, [4, 16], [1, 2], [0.0], [64], [0, 1]),
    (DENSE, MODERN, NO, [4, 16], [1, 2], [0.3], [64], [0, 1]),
    (PLAIN, OLD, YES, [4], [20], [0.0], [64, 256], [0, 1]),
)


@dataclasses.dataclass(frozen=True)
class Config:
    network: str = "densenet48"
    """densenet48 or convnet48."""
    blocks: int = 4
    convs: int = 2
    """Convolutions in a block."""
    filters: int = 16
    dropout: float = 0.3
    batch_norm: bool = False
    batch_size: int = 64
    initialiser: str = "glorot"
    """glorot and truncated are historical, he is modern."""
    seed: int = 0
    """Of the weights, the order, the draws and the images."""
    table: str = "reduced"
    """reduced: what two CPU cores do in an hour; full: both sheets of the study, for a GPU."""
    images: int = 3000
    """Training images."""
    epochs: int = 4
    learning_rate: float = 1e-3
    """Of Adam."""
    adversarial: bool = False
    """Train on PGD images of 5 steps instead of plain ones."""
    eps: float = 4 / 255
    """L-inf radius of the attacks."""
    examples: int = 400
    """Test images, a subset drawn by the seed, for clean and attacked accuracy."""
    data: str = "fashion_mnist"
    """A data set, or a folder CLASS/*.png."""
    classes: tuple[str, ...] = ()
    """Two of its classes, the majority first; when empty, T-shirts and shirts of Fashion-MNIST, and
    all classes of other sets."""
    majority: float = 0.543
    """Share of the first of the two classes."""
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def grid(config: Config) -> Grid:
    if config.table == "full":
        return choices(initialiser=("glorot", "he"), seed=range(3)) * (_sheet_a() + _sheet_b())
    if config.table != "reduced":
        raise ValueError(f"table={config.table}; reduced and full are taken")
    cells = Grid(())
    for row in REDUCED:
        cells += choices(**dict(zip(AXES, row, strict=True)))
    return cells


def _sheet_a() -> Grid:
    """The study's densely connected networks, without BatchNorm: 15 columns by 14 rows."""
    columns = choices(batch_size=[64, 256], filters=[4, 16, 32], dropout=[0.5, 0.3])
    columns += choices(batch_size=[256], filters=[16], dropout=[0.15, 0.05, 0.0])
    rows = choices(blocks=[3, 4], convs=[1, 2, 4, 7, 10, 20, 40])
    return choices(network=["densenet48"], batch_norm=[False]) * rows * columns


def _sheet_b() -> Grid:
    """Its plain networks: 12 columns by 12 rows."""
    columns = choices(batch_norm=[False, True], dropout=[0.5, 0.3], filters=[4, 16, 32])
    rows = choices(blocks=[4], convs=[1, 2, 4, 7, 10, 20], batch_size=[64, 256])
    return choices(network=["convnet48"]) * rows * columns


def build(config: Config) -> Training:
    where = (config.data, config.data_dir, config.classes, config.majority)
    train = images("train", config.images, config.seed, *where)
    pgd = lambda steps: PGD(ball=Linf(config.eps), step_size=config.eps / 4, steps=steps)
    training = Training(
        module=create(
            config.network,
            classes=len(train.classes),
            blocks=config.blocks,
            convs_per_block=config.convs,
            filters=config.filters,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
            initialiser=config.initialiser,
        ),
        objective=Madry(pgd(5)) if config.adversarial else Standard(),
        # A learning rate in the optimiser's state is data: cells that differ in it share a program.
        optimizer=optimizer("adam", in_state=True, learning_rate=config.learning_rate),
        train=train,
        test=images("test", config.examples, config.seed, *where),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        evaluate_examples=None,
        attacks={"pgd": pgd(10)},
    )
    return dataclasses.replace(training, evaluate_every=training.total_steps)


@functools.lru_cache(maxsize=8)
def images(
    split: str,
    n: int,
    seed: int,
    data: str,
    data_dir: str | None,
    classes: tuple[str, ...],
    majority: float,
) -> Dataset:
    """``n`` grey 48x48 images; of two chosen classes the first has its share."""
    folder = Path(data).is_dir()
    found = load(data, split, data_dir, size=SIZE) if folder else load(data, split, data_dir)
    pair = classes or PAIRS.get(data, ())
    found = _two(found, pair, majority, n, seed) if pair else found.subset(n, seed)
    grey = [np.asarray(Image.fromarray(_plane(x)).convert("L").resize(SIZE[::-1], Image.BILINEAR))
            for x in found.x]  # fmt: skip
    return dataclasses.replace(found, x=np.stack(grey))


def _plane(x: np.ndarray) -> np.ndarray:
    return x[..., 0] if x.shape[-1] == 1 else x


def _two(data: Dataset, pair: Sequence[str], majority: float, n: int, seed: int) -> Dataset:
    unknown = [name for name in pair if name not in data.classes]
    if unknown or len(pair) != 2 or not 0 < majority < 1:
        raise ValueError(
            f"classes={pair}, majority={majority}; two of {', '.join(data.classes)} and a share "
            "between 0 and 1 are taken"
        )
    places = [np.flatnonzero(data.y == data.classes.index(name)) for name in pair]
    most = math.floor(min(len(places[0]) / majority, len(places[1]) / (1 - majority)))
    counts = [round(n * majority), n - round(n * majority)]
    if n > most:
        raise ValueError(f"images={n}; {data.name} has {most} of {pair} with majority {majority}")
    rng = np.random.default_rng(seed)
    drawn = [np.sort(rng.permutation(p)[:c]) for p, c in zip(places, counts, strict=True)]
    both = data.take(np.concatenate(drawn))
    y = np.repeat([0, 1], counts)
    return dataclasses.replace(both, y=y, classes=tuple(pair))


# --- what the study says of its tables, each tested on the cells of a sweep -----------------------

# Cells that the study could not run for want of memory, and its largest that it could: network,
# BatchNorm, blocks, convolutions in a block, batch, filters.
KO = (
    ("densenet48", False, 3, 20, 256, 16),
    ("densenet48", False, 3, 40, 64, 16),
    ("densenet48", False, 3, 40, 256, 4),
    ("densenet48", False, 4, 20, 256, 16),
    ("densenet48", False, 4, 20, 256, 32),
    ("densenet48", False, 4, 40, 64, 16),
    ("densenet48", False, 4, 40, 256, 4),
    ("convnet48", False, 4, 20, 256, 32),
    ("convnet48", True, 4, 20, 256, 32),
)
RAN = (
    ("densenet48", False, 3, 40, 64, 4),
    ("densenet48", False, 3, 20, 64, 32),
    ("densenet48", False, 3, 10, 256, 32),
    ("densenet48", False, 4, 20, 256, 4),
    ("densenet48", False, 4, 40, 64, 4),
    ("convnet48", False, 4, 20, 256, 16),
    ("convnet48", True, 4, 20, 256, 16),
    ("convnet48", True, 4, 20, 64, 32),
)


CONVS = (1, 2, 4, 7, 10, 20, 40)


@dataclasses.dataclass(frozen=True)
class Mean:
    """Of the cells of one configuration, over seeds."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} +- {100 * self.error:.1f}"


def mean(cells: Iterable[Cell], **config: Any) -> Mean | None:
    """Clean accuracy of the cells with these settings; None for fewer than two seeds."""
    found = [
        cell.metrics["last/clean"]
        for cell in cells
        if cell.status == "done" and all(cell.config[n] == v for n, v in config.items())
    ]
    if len(found) < 2:
        return None
    return Mean(float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(len(found))))


def above(a: Mean, b: Mean) -> bool:
    """Whether a is larger than b by two standard errors of the difference."""
    return a.value - b.value >= 2 * math.hypot(a.error, b.error) and a.value > b.value


def findings(cells: Sequence[Cell]) -> str:
    """The study's claims: reproduced, in part, not or untested, each with its numbers."""
    lines = []
    for claim, test in CLAIMS:
        verdict, numbers = test(cells)
        lines += [f"{claim}: {VERDICTS.get(verdict, verdict)}", *(f"    {n}" for n in numbers)]
    lines += ["Between cells that differ in nothing else, points of clean accuracy, under PGD:"]
    lines += [f"    {line}" for line in effects(cells)]
    return "\n".join(lines)


def effects(cells: Sequence[Cell]) -> list[str]:
    """What each step along an axis changes, as means and standard errors over pairs of cells."""
    done = [cell for cell in cells if cell.status == "done"]
    lines = []
    for axis in (*AXES[:-1], "blocks"):
        groups: dict[str, dict[Any, Cell]] = {}
        for cell in done:
            others = {n: v for n, v in cell.config.items() if n != axis}
            groups.setdefault(canonical(others), {})[cell.config[axis]] = cell
        values = sorted({cell.config[axis] for cell in done})
        for low, high in itertools.pairwise(values):
            pairs = [(g[low], g[high]) for g in groups.values() if low in g and high in g]
            if len(pairs) < 3:
                continue
            said = []
            for metric in ("last/clean", "last/worst"):
                gains = 100 * np.array([b.metrics[metric] - a.metrics[metric] for a, b in pairs])
                error = gains.std(ddof=1) / math.sqrt(len(pairs))
                said.append(f"{gains.mean():+.1f} +- {error:.1f}")
            lines.append(f"{axis} {low} -> {high}: {', '.join(said)} ({len(pairs)} pairs)")
    return lines


VERDICTS = {True: "reproduced", False: "NOT reproduced", None: "untested, no such cells"}

# What a claim is tested on where it does not say otherwise.
USUAL = {
    "network": "densenet48",
    "initialiser": "glorot",
    "batch_norm": False,
    "blocks": 4,
    "filters": 16,
    "convs": 2,
    "dropout": 0.3,
    "batch_size": 64,
}


def _row(cells: Sequence[Cell], axis: str, values: Sequence[Any], **changes: Any) -> list[Any]:
    """The mean for each value of an axis that has one; the rest is usual but for the changes."""
    found = [(v, mean(cells, **{**USUAL, **changes, axis: v})) for v in values]
    return [(value, number) for value, number in found if number is not None]


def _said(row: list[Any], axis: str) -> str:
    return f"{axis}: " + ", ".join(f"{value:g} {number}" for value, number in row)


def _deeper(cells: Sequence[Cell]) -> tuple[bool | None, list[str]]:
    lines, verdicts = [], []
    for initialiser in ("glorot", "he"):
        row = _row(cells, "convs", CONVS, initialiser=initialiser)
        if len(row) > 1:
            lines.append(f"{initialiser}, " + _said(row, "convolutions a block"))
            rises = zip(row[1:], row, strict=False)
            verdicts.append(all(above(b, a) for (_, b), (_, a) in rises))
    return verdicts[0] if verdicts else None, lines


def _dropout(cells: Sequence[Cell]) -> tuple[bool | None, list[str]]:
    rates = (0.0, 0.05, 0.15, 0.3, 0.5)
    rows = [_row(cells, "dropout", rates, batch_size=batch) for batch in (64, 256)]
    row = max(rows, key=len)  # the full table has all rates at 256 alone
    if len(row) < 3 or row[0][0] != 0 or row[-1][0] != 0.5:
        return None, []
    best = max(row, key=lambda item: item[1].value)
    good = 0.05 <= best[0] <= 0.3 and above(best[1], row[-1][1]) and best[1].value > row[0][1].value
    return good, [_said(row, "dropout")]


def _small_batch(cells: Sequence[Cell]) -> tuple[bool | None, list[str]]:
    lines, gaps = [], []
    for convs in CONVS:
        row = _row(cells, "batch_size", (64, 256), filters=4, dropout=0.5, convs=convs)
        if len(row) == 2:
            lines.append(f"{convs} convolutions a block, dropout .5, " + _said(row, "batch"))
            gaps.append(row[1][1].value - row[0][1].value)
    return (float(np.mean(gaps)) >= 0.1 if gaps else None), lines


def _memory(cells: Sequence[Cell]) -> tuple[str, list[str]]:
    """Whether one budget tells what was KO from what ran, by the memory that shapes predict."""
    del cells  # nothing of it needs to be run
    need = sorted(
        [(_gigabytes(*network), "KO", network) for network in KO]
        + [(_gigabytes(*network), "ran", network) for network in RAN]
    )
    wrong = lambda budget: [n for n in need if (n[0] > budget) != (n[1] == "KO")]
    gaps = [(low[0], high[0]) for low, high in itertools.pairwise(need)]
    budget, next_up = min(gaps, key=lambda gap: (len(wrong(gap[0])), gap[0] - gap[1]))
    right = len(need) - len(wrong(budget))
    lines = [f"a budget of {budget:.1f} to {next_up:.1f} GB tells {right} of {len(need)} apart"]
    for gigabytes, was, (network, norm, blocks, convs, batch, filters) in wrong(budget):
        lines.append(
            f"not {network}, BatchNorm {norm}, {blocks} blocks of {convs}, batch {batch}, "
            f"{filters} filters: {gigabytes:.1f} GB, {was}"
        )
    return "in part" if wrong(budget) else "reproduced", lines


def _gigabytes(
    network: str, batch_norm: bool, blocks: int, convs: int, batch: int, filters: int
) -> float:
    module = create(
        network, classes=2, blocks=blocks, convs_per_block=convs, filters=filters, dropout=0.5,
        batch_norm=batch_norm,
    )  # fmt: skip
    blank = Dataset(np.zeros((batch, *SIZE, 1), np.uint8), np.arange(batch) % 2)
    training = Training(module=module, objective=Standard(), optimizer=optimizer("adam", 1e-3),
                        train=blank, steps=1, batch_size=batch)  # fmt: skip
    return predicted_bytes(training) / 1e9


def _batch_norm(initialiser: str, cells: Sequence[Cell]) -> tuple[bool | None, list[str]]:
    lines, verdicts = [], []
    for batch_norm, filters, dropout in itertools.product((False, True), (4, 16), (0.0, 0.3)):
        row = _row(
            cells, "convs", CONVS, network="convnet48", initialiser=initialiser,
            batch_norm=batch_norm, filters=filters, dropout=dropout,
        )  # fmt: skip
        if row:
            norm = "with BatchNorm" if batch_norm else "without"
            said = _said(row, "convolutions a block")
            lines.append(f"{norm}, {filters} filters, dropout {dropout:g}, {said}")
        deep = [number for convs, number in row if convs >= 2]
        verdicts += [_dead(cells, number) != batch_norm for number in deep]
    return (all(verdicts) if verdicts else None), lines


def _eighty(cells: Sequence[Cell]) -> tuple[bool | None, list[str]]:
    lines, verdicts = [], []
    for filters, dropout in itertools.product((4, 16, 32), (0.0, 0.3, 0.5)):
        row = _row(
            cells, "batch_size", (64, 256), network="convnet48", batch_norm=True, convs=20,
            filters=filters, dropout=dropout,
        )  # fmt: skip
        if len(row) == 2:
            lines.append(f"{filters} filters, dropout {dropout:g}, " + _said(row, "batch"))
            verdicts.append(row[1][1].value - row[0][1].value >= 0.15)
    return (all(verdicts) if verdicts else None), lines


def _dense_without(cells: Sequence[Cell]) -> tuple[bool | None, list[str]]:
    row = _row(cells, "network", ("densenet48", "convnet48"), filters=4, dropout=0.0, convs=7)
    if len(row) < 2:
        return None, []
    (_, dense), (_, plain) = row
    learns = dense.value - _majority(cells) > 0.1
    said = f"28 convolutions of 4 filters: dense {dense}, plain {plain}"
    return learns and _dead(cells, plain), [said]


def _accurate(cells: Sequence[Cell]) -> tuple[bool | None, list[str]]:
    """Over the cells that learned: the share of right images that the attack turns, by ranks."""
    learned = [
        (cell.metrics["last/clean"], cell.metrics["last/worst"])
        for cell in cells
        if cell.status == "done" and cell.metrics["last/clean"] > _majority(cells) + 0.1
    ]
    if len(learned) < 8:
        return None, []
    clean, robust = np.array(learned).T
    turned = _rank_correlation(clean, 1 - robust / clean)
    kept = _rank_correlation(clean, robust)
    bound = 2 / math.sqrt(len(learned) - 1)  # two standard errors of no correlation
    return turned > bound, [
        f"{len(learned)} cells that learned, rank correlation of clean accuracy with the share of "
        f"right images that PGD turns {turned:+.2f}, with accuracy under PGD {kept:+.2f} "
        f"(chance: within {bound:.2f})"
    ]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def _majority(cells: Sequence[Cell]) -> float:
    return float(cells[0].config["majority"])


def _dead(cells: Sequence[Cell], accuracy: Mean) -> bool:
    """Whether a network tells the majority and nothing else."""
    return abs(accuracy.value - _majority(cells)) < 0.02


CLAIMS = (
    ("Deeper is better", _deeper),
    ("Dropout is a trade-off, best between .05 and .3", _dropout),
    ("Dropout kills convergence for small batches", _small_batch),
    ("KO for big networks and batches", _memory),
    (
        "BatchNorm is needed for 8 convolutions and more",
        functools.partial(_batch_norm, "glorot"),
    ),
    (
        "The same with truncated normal initialisation, sigma .1",
        functools.partial(_batch_norm, "truncated"),
    ),
    ("The same with He's initialisation", functools.partial(_batch_norm, "he")),
    ("Bigger batches for 80 convolutions", _eighty),
    ("Dense networks need no BatchNorm", _dense_without),
    ("More accurate networks are more vulnerable", _accurate),
)


if __name__ == "__main__":
    with Store(Path(sys.argv[1] if len(sys.argv) > 1 else "sweeps/meta_parameters")) as store:
        print(findings(store.cells()))
