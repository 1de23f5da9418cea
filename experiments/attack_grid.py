"""Networks by attacks by radii by seeds: one table of robust accuracy, one trace for each attack.

A cell loads a finished network and attacks it. The networks are the runs in ``--runs``; where there
are none three are trained first: a perceptron as usual, by Madry's objective and by TRADES. Eps and
weights are data, so that all radii, seeds and networks of one kind share a compiled attack.

Source: none; that larger radii leave less, that stronger attacks leave less, and that adversarial
training helps, are the checks of Carlini et al., "On evaluating adversarial robustness", 2019
(arXiv 1902.06705), section 5.

    advjax sweep experiments/attack_grid.py
    advjax sweep experiments/attack_grid.py --runs runs --data mnist --workers 2
    advjax sweep page sweeps/attack_grid    # the table, its charts and all cells, for a browser

Hardware and time: 1 minute for the default 96 cells on scikit-learn's digits, on one core of a busy
machine.

Expected: down every row of the table accuracy falls with eps; for each network and eps APGD leaves
at most what FGSM leaves; the adversarially trained networks keep more than the standard one.

Measured, robust accuracy in percent, mean and standard error over two seeds; clean 98.3, 98.5 and
97.0:

    network   attack           0.05          0.1         0.15          0.2
    standard  fgsm      84.5 +- 0.2  50.3 +- 2.3  14.3 +- 0.3   1.3 +- 0.3
    standard  apgd      83.7 +- 0.3  46.3 +- 3.0   8.0 +- 0.3   0.2 +- 0.2
    standard  square    91.5 +- 0.8  72.2 +- 1.2  38.7 +- 3.0   7.0 +- 0.3
    madry     fgsm      95.3 +- 0.0  83.8 +- 0.5  68.0 +- 2.0  39.2 +- 1.8
    madry     apgd      95.0 +- 0.0  82.3 +- 0.0  57.7 +- 2.3  18.3 +- 1.3
    madry     square    96.2 +- 0.2  87.5 +- 0.2  72.5 +- 1.5  44.3 +- 2.0
    trades    fgsm      92.7 +- 1.0  84.7 +- 0.3  72.3 +- 1.7  53.8 +- 1.8
    trades    apgd      92.7 +- 1.0  82.7 +- 0.7  65.2 +- 1.5  37.3 +- 1.0
    trades    square    94.7 +- 1.0  85.3 +- 0.3  72.7 +- 0.3  52.7 +- 0.3

PGD-40 lies between FGSM and APGD everywhere.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from advjax import (
    APGD,
    FGSM,
    PGD,
    TRADES,
    Linf,
    Madry,
    Square,
    Standard,
    Training,
    create,
    evaluate,
    fit,
    load,
    load_classifier,
)
from advjax.sweeps import Grid, choices
from advjax.training import optimizer

ATTACKS = {
    "fgsm": lambda ball: FGSM(ball=ball),
    "pgd": lambda ball: PGD(ball=ball, steps=40),
    "apgd": lambda ball: APGD(ball=ball),
    "square": lambda ball: Square(ball=ball, steps=500),
}
PATIENCE_S = 600  # for another worker that is training the network


@dataclasses.dataclass(frozen=True)
class Config:
    network: str = "standard"
    """A run in ``runs``; a new one is ``standard``, ``madry`` or ``trades``."""
    attack: str = "apgd"
    eps: float = 0.1
    """L-inf radius of the attack."""
    seed: int = 0
    """Of the attack and of the test images."""
    runs: Path = Path("runs/attack_grid")
    """Folder of the networks' runs."""
    eps_train: float = 0.1
    """L-inf radius of the networks that are trained here."""
    epochs: int = 30
    examples: int = 300
    """Test images, a subset drawn by the seed."""
    data: str = "digits"
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def grid(config: Config) -> Grid:
    found = sorted(p.parent.name for p in config.runs.glob("*/config.json"))
    return choices(
        network=found or ("standard", "madry", "trades"),
        attack=tuple(ATTACKS),
        eps=(0.05, 0.1, 0.15, 0.2),
        seed=(0, 1),
    )


def trained(config: Config) -> Any:
    """The network, trained now if it is not there yet, by one worker while others wait."""
    folder = config.runs / config.network
    pgd = PGD(ball=Linf(config.eps_train), step_size=config.eps_train / 4, steps=7)
    objectives = {"standard": Standard(), "madry": Madry(pgd), "trades": TRADES(pgd, beta=6.0)}
    if config.network not in objectives:
        return load_classifier(folder)
    training = Training(
        module=create("mlp", hidden=(128, 128)),
        objective=objectives[config.network],
        optimizer=optimizer("adam", 1e-3),
        train=load(config.data, "train", config.data_dir),
        epochs=config.epochs,
        batch_size=50,
    )
    device = jax.local_devices()[:1]
    return fit(training, folder, devices=device, wait_s=PATIENCE_S).last.model


def main(config: Config, run_dir: Path) -> dict[str, Any]:
    del run_dir  # a cell is short, and begins again
    model = trained(config)
    test = load(config.data, "test", config.data_dir).subset(config.examples, config.seed)
    attack = ATTACKS[config.attack](Linf(config.eps))
    found = evaluate(model, test, {"attack": attack}, key=jax.random.key(config.seed))
    robust = found.robust["attack"]
    return {
        "robust": robust.value,
        "clean": found.clean.value,
        "low": robust.low,
        "high": robust.high,
    }
