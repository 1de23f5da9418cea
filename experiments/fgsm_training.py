"""Training on FGSM images lowers the FGSM error; training on noise does not.

The loss is ``.5 L(x) + .5 L(x + eps sign(gradient))``, the images crafted anew at every step. Noise
of the same size, +-eps per pixel or uniform in between, is the control: it leaves the error on FGSM
images where it was. What the paper could not see is measured beside it: FGSM is a weak attack, and
a stronger one in the same ball (Auto-PGD) breaks the network that FGSM does not.

Source: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015
(arXiv 1412.6572), sections 6 and 7. Published, maxout networks with dropout, eps .25: clean error
.94 without and .84 with FGSM images, FGSM error 89.4 and 17.9; of images crafted on the other
network 40.9 (crafted on the hardened one, judged by the plain one) and 19.6; with +-eps noise 86.2,
with uniform noise 90.4.

    advjax train experiments/fgsm_training.py --data-dir tensorflow_datasets

Hardware and time: 2 CPU cores, about 2 minutes for two seeds.

Expected: for every seed the FGSM error falls to a quarter or less by training on FGSM images and
stays above 80 % after training on noise; the clean error falls too.

Measured, seeds 0 and 1, all 10,000 test images (Auto-PGD: 1,000), errors in percent:

                clean         FGSM          transferred   Auto-PGD
    clean      1.81  1.78   100.0 100.0     82.0  73.3   100.0 100.0
    FGSM       2.78  2.61    14.3  13.8     35.9  33.4   100.0 100.0
    signs      1.58  1.60    99.6  99.5     97.3  96.9   100.0 100.0
    uniform    1.73  1.67    99.9 100.0     99.8  99.8   100.0 100.0

The FGSM error falls to a seventh, and noise leaves it where it was, as published. The clean error
rises by .9 points instead of falling: this perceptron has no dropout and trains for 8 epochs.
Auto-PGD leaves nothing of any of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax import (
    APGD,
    FGSM,
    PGD,
    Linf,
    Madry,
    Standard,
    Training,
    Transferred,
    WorstOf,
    create,
    dlr,
    evaluate,
    fit,
    load,
    pytree,
)
from advjax.pytrees import Array, ArrayLike, Key
from advjax.training import optimizer, schedule


@pytree
class RandomSigns:
    """Adds +-eps to every pixel at random, not cut to the image box, as published."""

    eps: ArrayLike

    def __call__(self, key: Key, model: Any, x: Array, y: Array) -> Array:
        del model, y
        draw = lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype)
        return x + jnp.asarray(self.eps, x.dtype) * jax.vmap(draw)(key)


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float = 0.25
    """L-inf radius of FGSM, and size of the noise."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the perceptron's hidden layers."""
    train_examples: int = 60_000
    """Training images, a seeded subset."""
    epochs: int = 8
    batch_size: int = 100
    lr: float = 1e-3
    """Adam's learning rate at the start; it falls to 0 linearly."""
    seeds: tuple[int, ...] = (0, 1)
    strong_examples: int = 1000
    """Test images for Auto-PGD, a seeded subset; FGSM gets all of them."""
    data: str = "mnist"
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def main(config: Config, run_dir: Path, progress: Any = None) -> dict[str, Any]:
    whole = load(config.data, "train", config.data_dir)
    test = load(config.data, "test", config.data_dir)
    ball = Linf(config.eps)
    fgsm = FGSM(ball=ball)
    noise = PGD(ball=ball, steps=0, start_in_box=False, best=False)
    signs: Any = RandomSigns(eps=config.eps)
    objectives: dict[str, Any] = {
        "clean": Standard(),
        "fgsm": Madry(attack=fgsm, clean_weight=0.5),
        "signs": Madry(attack=signs, clean_weight=0.5),
        "uniform": Madry(attack=noise, clean_weight=0.5),
    }
    apgd = WorstOf((APGD(ball=ball), APGD(ball=ball, loss=dlr)))
    rows = []
    for seed in config.seeds:
        train = whole.subset(config.train_examples, seed)
        steps = config.epochs * (len(train) // config.batch_size)
        models = {}
        for name, objective in objectives.items():
            training = Training(
                module=create("mlp", hidden=config.hidden),
                objective=objective,
                optimizer=optimizer("adam", schedule("linear", config.lr, 0.0, steps)),
                train=train,
                epochs=config.epochs,
                batch_size=config.batch_size,
                seed=seed,
            )
            settings = {**dataclasses.asdict(config), "seeds": seed}
            folder = run_dir / f"{name}-seed-{seed}"
            models[name] = fit(training, folder, config=settings, progress=progress).last.model
        for name, model in models.items():
            other = models["clean" if name != "clean" else "fgsm"]
            attacks = {"fgsm": fgsm, "transferred": Transferred(fgsm, source=other)}
            found = evaluate(model, test, attacks, key=jax.random.key(seed))
            few = test.subset(config.strong_examples)
            strong = evaluate(model, few, {"apgd": apgd}, key=jax.random.key(seed))
            hit = found.attacks["fgsm"]
            accuracy = {"clean": found.clean, **found.robust, **strong.robust}
            errors = {attack: 100 * (1 - value.value) for attack, value in accuracy.items()}
            sure = float(100 * np.mean(hit.confidence[hit.success])) if hit.success.any() else None
            rows.append({"seed": seed, "trained_on": name, **errors, "confidence": sure})
    lines = [
        "seed  trained on  clean error %  FGSM %  confidence %  transferred FGSM %  Auto-PGD %"
    ]
    for r in rows:
        sure = "-" if r["confidence"] is None else f"{r['confidence']:.1f}"
        lines.append(
            f"{r['seed']:4}  {r['trained_on']:>10}  {r['clean']:13.2f}  {r['fgsm']:6.1f}  "
            f"{sure:>12}  {r['transferred']:18.1f}  {r['apgd']:10.1f}"
        )
    return {"rows": rows, "examples": len(test), "table": "\n".join(lines)}
