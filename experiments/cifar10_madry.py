"""PGD-10 training makes a PreAct-ResNet-18 keep half of the CIFAR-10 test images at eps 8/255.

Source: Madry et al., ICLR 2018 (arXiv 1706.06083), with the recipe of Rice, Wong, Kolter, ICML 2020
(arXiv 2002.11569): SGD 0.1 with momentum 0.9 and weight decay 5e-4, divided by 10 at half and three
quarters of the steps, batch 128, crop and flip; eps 8/255, 10 steps of 2/255 from a random start.
Published for 200 epochs: PGD-20 52.8 at the best checkpoint and 43.8 at the last one, so both are
reported.

    advjax train experiments/cifar10_madry.py --data-dir tensorflow_datasets
    advjax train experiments/cifar10_madry.py --steps 20 --batch-size 8 --validation 32 \\
        --run runs/smoke   # on a CPU: does it run, does the loss stay finite
    advjax evaluate runs/cifar10_madry --data-dir tensorflow_datasets \\
        --eps 8/255 --steps 20 --step-size 2/255

Hardware and time: sized for one GPU; not yet measured on one.

Expected: within a few points of the published best checkpoint; 40 epochs are short of 200.

Measured: 20 steps of batch 8 take 2 minutes on 2 CPU cores, and the loss stays finite.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from advjax import PGD, Augment, Linf, Madry, Training, create, load
from advjax.training import optimizer, schedule


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float = 8 / 255
    """L-inf radius."""
    step_size: float = 2 / 255
    attack_steps: int = 10
    epochs: int = 40
    steps: int | None = None
    """Training steps; None: what the epochs make."""
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    craft_train: bool = False
    """Craft with the BatchNorm statistics of the batch, as Rice et al. do, not the running ones."""
    bf16: bool = False
    """Compute in bfloat16 (parameters, statistics and logits stay float32)."""
    validation: int = 1000
    """Test images that the robust accuracy is followed on; a seeded subset."""
    seed: int = 0
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def build(config: Config) -> Training:
    train = load("cifar10", "train", config.data_dir)
    steps = config.steps or config.epochs * (len(train) // config.batch_size)
    rate = schedule("piecewise_constant", config.lr, {steps // 2: 0.1, steps * 3 // 4: 0.1})
    ball = Linf(config.eps)
    crafted = PGD(ball=ball, step_size=config.step_size, steps=config.attack_steps, best=False)
    return Training(
        module=create(
            "preact_resnet18",
            classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2471, 0.2435, 0.2616),
            dtype=jnp.bfloat16 if config.bf16 else jnp.float32,
        ),
        objective=Madry(attack=crafted, craft_train=config.craft_train),
        optimizer=optimizer(
            "chain",
            optimizer("add_decayed_weights", config.weight_decay),
            optimizer("sgd", rate, momentum=0.9),
        ),
        train=train,
        test=load("cifar10", "test", config.data_dir),
        evaluate_examples=config.validation,
        steps=steps,
        batch_size=config.batch_size,
        augment=Augment(crop=4, flip=True),
        attacks={"pgd-10": PGD(ball=ball, step_size=config.step_size, steps=10)},
        seed=config.seed,
    )
