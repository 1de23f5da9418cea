"""The published recipes of adversarial training for CIFAR-10, one PreAct-ResNet-18 for all of them.

Source: the papers and their authors' code. Madry: Rice, Wong, Kolter, ICML 2020 (arXiv 2002.11569).
TRADES: Zhang et al., ICML 2019 (arXiv 1901.08573). MART: Wang et al., ICLR 2020. AWP: Wu, Xia,
Wang, NeurIPS 2020 (arXiv 2004.05884). Free: Shafahi et al., NeurIPS 2019 (arXiv 1904.12843), in
the shorter recipe of the next. Fast: Wong, Rice, Kolter, ICLR 2020 (arXiv 2001.03994). GradAlign:
Andriushchenko, Flammarion, NeurIPS 2020 (arXiv 2007.02617).

    advjax train experiments/cifar10_objectives.py --objective trades \\
        --data-dir tensorflow_datasets --run runs/cifar10_trades
    advjax evaluate runs/cifar10_trades --data-dir tensorflow_datasets \\
        --attack autoattack --eps 8/255

Hardware and time: sized for one GPU; not yet measured on one. In passes of the network a step costs
1 (free), 2 (fast), about 6 (grad_align), 11 (madry), 12 (trades, mart, awp_madry), 14 (awp_trades).

Expected: % of the 10,000 test images, best checkpoint unless said otherwise, a ResNet-18 in one
laboratory's re-implementation of all (the README of MTandHJ/PyTorch-Robust) and, in brackets,
the authors' own figures, * of a wide network.

    objective   epochs  clean  AutoAttack
    madry          200  84.26  46.82, last 41.20  (PGD-20 52.79, last 43.75)
    trades          76  82.04  48.39              (84.92* clean, PGD-20 56.61*, AutoAttack 53.08*)
    mart           120  79.23  47.83              (PGD-20 55.6)
    awp_madry      200  82.32  49.88              (PGD-20 54.3 at the last step)
    awp_trades     200  82.75  51.86              (85.36* clean, AutoAttack 56.17*)
    free            88                            (85.96* clean, PGD-20 x 10 restarts 46.33*)
    fast            15  77.70  41.35              (83.34 clean, PGD-50 x 10 46.06, AutoAttack 43.21)
    grad_align      30                            (no catastrophic overfitting)

Best is told by robust accuracy on 1,000 held-out training images. What lies between best and last
is robust overfitting, except with "fast", where it would be the catastrophic one: that run stops
when the accuracy under its watch collapses.

Measured: not run: needs a GPU. The tests trace the shapes of every recipe's gradient; madry, trades
and mart made two steps on noise with a narrow network.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from advjax import (
    AWP,
    FGSM,
    MART,
    PGD,
    TRADES,
    Augment,
    FreeAT,
    GradAlign,
    Linf,
    Madry,
    Training,
    create,
    load,
)
from advjax.training import Schedule, optimizer, schedule

Name = Literal["madry", "trades", "mart", "awp_madry", "awp_trades", "free", "fast", "grad_align"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the published trainings; all are SGD with momentum .9."""

    epochs: int
    lr: float
    """Learning rate, at its peak."""
    weight_decay: float = 5e-4
    tenths: tuple[int, ...] = ()
    """Epochs after which it is divided by 10; none for a triangle."""
    peak: float = 0.5
    """Share of the steps at which the triangle is highest."""


RECIPES: dict[str, Recipe] = {
    "madry": Recipe(200, 0.1, tenths=(100, 150)),
    "trades": Recipe(76, 0.1, 2e-4, tenths=(74,)),
    "mart": Recipe(120, 0.01, 3.5e-3, tenths=(74, 89, 99)),
    "awp_madry": Recipe(200, 0.1, tenths=(100, 150)),
    "awp_trades": Recipe(200, 0.1, tenths=(99, 149)),
    "free": Recipe(88, 0.04),  # 11 times every image, 8 steps each time
    "fast": Recipe(15, 0.2),
    "grad_align": Recipe(30, 0.3, peak=0.4),
}


@dataclasses.dataclass(frozen=True)
class Config:
    objective: Name = "madry"
    """Which recipe."""
    epochs: int | None = None
    """Epochs, to which the recipe is stretched; None: its own."""
    batch_size: int = 128
    stages: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks in each stage of the PreAct-ResNet; the default makes 18 layers."""
    width: int = 64
    """Filters of its first stage."""
    bf16: bool = False
    """Compute in bfloat16 (parameters, statistics and logits stay float32)."""
    validation: int = 1000
    """Training images held out, on which the best checkpoint is told."""
    examples: int = 1000
    """Test images that the robust accuracy is followed on; a seeded subset."""
    seed: int = 0
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def objective(name: str, steps: int) -> Any:
    """The objective of a recipe that makes so many steps."""
    ball = Linf(8 / 255)
    pgd = PGD(ball=ball, step_size=2 / 255, steps=10, best=False)
    near = PGD(ball=Linf(0.031), step_size=0.007, steps=10, best=False)
    fgsm = FGSM(ball=ball)
    match name:
        case "madry":  # crafted with the statistics of the batch, as Rice et al. do
            return Madry(pgd, craft_train=True)
        case "trades":
            return TRADES(near, beta=6.0)
        case "mart":
            return MART(near, beta=5.0)
        case "awp_madry":
            return AWP(objective=Madry(pgd, craft_train=True), gamma=0.01)
        case "awp_trades":
            return AWP(objective=TRADES(pgd, beta=6.0), gamma=0.005, warmup=steps * 9 // 200)
        case "free":
            return FreeAT(ball=ball, replays=8)
        case "fast":
            start = FGSM(ball=ball, step_size=10 / 255, random_start=True)
            return Madry(start, craft_train=True)
        case "grad_align":
            return GradAlign(objective=Madry(fgsm, craft_train=True), weight=0.2)
    raise ValueError(f"objective {name!r}; one of {', '.join(RECIPES)} is taken")


def rate(recipe: Recipe, steps: int) -> Schedule:
    """The recipe's learning rate, stretched to so many steps."""
    if recipe.tenths:
        falls = {steps * epoch // recipe.epochs: 0.1 for epoch in recipe.tenths}
        return schedule("piecewise_constant", recipe.lr, falls)
    peak = int(recipe.peak * steps)
    return schedule("triangular", recipe.lr, peak, steps)


def build(config: Config) -> Training:
    train = load("cifar10", "train", config.data_dir)
    recipe, ball = RECIPES[config.objective], Linf(8 / 255)
    epochs = config.epochs or recipe.epochs
    steps = epochs * ((len(train) - config.validation) // config.batch_size)
    return Training(
        module=create(
            "preact_resnet18",
            classes=10,
            stages=config.stages,
            width=config.width,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2471, 0.2435, 0.2616),
            dtype=jnp.bfloat16 if config.bf16 else jnp.float32,
        ),
        objective=objective(config.objective, steps),
        optimizer=optimizer(
            "chain",
            optimizer("add_decayed_weights", recipe.weight_decay),
            optimizer("sgd", rate(recipe, steps), momentum=0.9),
        ),
        train=train,
        test=load("cifar10", "test", config.data_dir),
        validation=config.validation / len(train),
        evaluate_examples=config.examples,
        steps=steps,
        batch_size=config.batch_size,
        augment=Augment(crop=4, flip=True),
        attacks={"pgd-10": PGD(ball=ball, step_size=2 / 255, steps=10)},
        watch=PGD(ball=ball, step_size=2 / 255, steps=5) if config.objective == "fast" else None,
        seed=config.seed,
    )
