"""Adversarial regularisation holds against images crafted on another network, not on itself.

The tutorials craft FGSM images on a plain network and show them to the regularised one: a transfer
attack. The table has that number beside the white-box ones, FGSM and Auto-PGD with both losses, and
it has a control that the tutorials lack: a plain network that differs from the one attacked in its
seed alone resists the same images too, without any regularisation.

Source: Sarkar and Ganesan, "Adversarial learning" (TensorFlow User Group 2020), Fashion-MNIST with
``make_adv_reg_config(multiplier=.2, adv_step_size=.05)``, whose norm is L2 unless said otherwise;
published with a pretrained VGG-19: clean 91, FGSM(.05) on the base network 45, the same images on
the regularised one 83. The tutorial of Neural Structured Learning on MNIST
(adversarial_keras_cnn_mnist: step .2, norm "infinity"): clean 99 and 99, FGSM(.2) on the base
network about 50, the same images on the regularised one about 95.

    advjax train experiments/adversarial_regularization.py --data-dir tensorflow_datasets

Hardware and time: 2 CPU cores, about 6 minutes, of which Fashion-MNIST takes 4.

Expected: transferred FGSM images leave every network, the plain ones too, far more accuracy than
their own FGSM images leave the plain ones; the step in L2 changes next to nothing; the step in
L-inf raises the white-box accuracy, by far less than the transferred number promises, and Auto-PGD
takes part of it back.

Measured, seeds 0 and 1, 500 test images (10,000 training images, 4 epochs):

                          clean        transferred    FGSM           Auto-PGD
    Fashion  plain        85.0  84.0   62.0  65.2     43.0  50.6     32.8  37.8
             L2           84.2  83.0   64.4  65.2     48.0  52.0     39.0  42.0
             L-inf        83.2  83.4   72.2  75.2     63.4  67.0     59.6  62.8
    MNIST    plain        98.4  98.6   69.0  74.6     31.4  46.4      2.4   6.2
             L-inf        98.0  98.8   87.0  85.8     86.0  84.0     22.6  27.2

As expected, but for one thing: on MNIST FGSM on the regularised network itself leaves as much as
the transferred images do, since it was trained on such images; Auto-PGD takes 60 points of it back.
The published 83 and 95 on transferred images are not reached, nor clean 90 on Fashion-MNIST, with a
sixth of the images and a small network.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax

from advjax import (
    APGD,
    FGSM,
    L2,
    AdversarialRegularization,
    Attack,
    Linf,
    Standard,
    Training,
    Transferred,
    WorstOf,
    create,
    dlr,
    evaluate,
    fit,
    load,
    replace,
)

SETTINGS: dict[str, tuple[float, tuple[Any, ...]]] = {
    "fashion_mnist": (0.05, ("l2", "infinity")),
    "mnist": (0.2, ("infinity",)),
}
"""Data set: L-inf radius of the attacks and length of the regulariser's step; its norms."""


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("fashion_mnist", "mnist")
    """Data sets, of those in SETTINGS."""
    multiplier: float = 0.2
    """Weight of the neighbour's loss."""
    eps_l2: float = 0.5
    """Radius of the attack in L2."""
    train_examples: int = 60_000
    """Training images, a seeded subset."""
    epochs: int = 5
    batch_size: int = 32
    lr: float = 1e-3
    """Adam's."""
    steps: int = 30
    """Steps of each Auto-PGD."""
    seeds: tuple[int, ...] = (0, 1)
    """Images that are transferred are crafted on the plain network of the next seed."""
    examples: int = 500
    """Test images to attack, a seeded subset; clean accuracy is of all."""
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def main(config: Config, run_dir: Path, progress: Any = None) -> dict[str, Any]:
    rows = [row for data in config.data for row in _study(config, data, run_dir, progress)]
    header = ["data", "seed", "network", "clean %", "transferred FGSM %", "FGSM %", "Auto-PGD %"]
    header.append(f"L2({config.eps_l2:g}) Auto-PGD %")
    lines = ["  ".join([header[0].ljust(13), header[1], header[2].ljust(18), *header[3:]])]
    for r in rows:
        values = [r.get(name) for name in ("clean", "transferred", "fgsm", "apgd", "apgd-l2")]
        shown = ["-" if value is None else f"{value:.1f}" for value in values]
        cells = [value.rjust(len(h)) for value, h in zip(shown, header[3:], strict=True)]
        lines.append("  ".join([f"{r['data']:13}", f"{r['seed']:4}", f"{r['network']:18}", *cells]))
    return {"rows": rows, "examples": config.examples, "table": "\n".join(lines)}


def _study(config: Config, data: str, run_dir: Path, progress: Any) -> list[dict[str, Any]]:
    """The rows of one data set."""
    eps, norms = SETTINGS[data]
    whole = load(data, "train", config.data_dir)
    test = load(data, "test", config.data_dir)
    some = test.subset(config.examples)
    regulariser = AdversarialRegularization(multiplier=config.multiplier, step=eps)
    objectives = {"plain": Standard()} | {
        f"step {eps:g}, {norm}": replace(regulariser, norm=norm) for norm in norms
    }
    models = {}
    for seed in config.seeds:
        train = whole.subset(config.train_examples, seed)
        for name, objective in objectives.items():
            training = Training(
                module=create("lecture_cnn"),
                objective=objective,
                optimizer=optax.adam(config.lr),
                train=train,
                epochs=config.epochs,
                batch_size=config.batch_size,
                seed=seed,
            )
            settings = {**dataclasses.asdict(config), "data": data, "seeds": seed}
            folder = run_dir / f"{data}-{name.replace(', ', '-').replace(' ', '-')}-seed-{seed}"
            models[seed, name] = fit(
                training, folder, config=settings, progress=progress
            ).last.model
    fgsm, apgd = FGSM(ball=Linf(eps)), APGD(ball=Linf(eps), steps=config.steps)
    own: dict[str, Attack] = {"fgsm": fgsm, "apgd": WorstOf((apgd, replace(apgd, loss=dlr)))}
    if "l2" in norms:
        own["apgd-l2"] = APGD(ball=L2(config.eps_l2), steps=config.steps)
    rows = []
    for (seed, name), model in models.items():
        following = config.seeds[(config.seeds.index(seed) + 1) % len(config.seeds)]
        source = models[following, "plain"]
        attacks = {"transferred": Transferred(fgsm, source=source), **own}
        clean = evaluate(model, test, {}, key=jax.random.key(seed)).clean
        found = evaluate(model, some, attacks, key=jax.random.key(seed))
        accuracy = {"clean": clean, **found.robust}
        row = {attack: 100 * value.value for attack, value in accuracy.items()}
        rows.append({"data": data, "seed": seed, "network": name, **row})
    return rows
