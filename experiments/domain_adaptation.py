"""Gradient reversal carries digits from MNIST over to coloured textures without their labels.

The target domain is like MNIST-M: ``|texture - digit|``. Its textures are cut from coloured noise
with the 1/f amplitudes of natural images, made by the seed, instead of the photographs of BSDS500.

Source: Ganin, Lempitsky, ICML 2015 (arXiv 1409.7495); Ganin et al., JMLR 2016 (arXiv 1505.07818).
Published, MNIST to MNIST-M, target accuracy: trained on the source .5225, with gradient reversal
.7666, trained on the target .9596.

    advjax train experiments/domain_adaptation.py --data-dir tensorflow_datasets

Hardware and time: 2 CPU cores, not yet measured; about 1 to 2 minutes a training.

Expected: for every seed, target accuracy grows from the source-only arm to DANN, and from there to
target only; at least 20 points by DANN, as published.

Measured: not yet at these settings. In a trial (seed 5, 800 steps, filters 16 and 32, weight 1,
pixels not centred) the features died after half of the steps: both domains at chance, 11.3 %.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from advjax import DANN, Heads, Training, dann_learning_rate, evaluate, fit, load
from advjax.data import Dataset, to_float
from advjax.evaluation.images import save_png


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 20_000
    """Training digits, a seeded subset; the target domain shows the same ones."""
    pictures: int = 200
    """Pictures that the textures of a split are cut from."""
    steps: int = 2000
    batch_size: int = 32
    """Images of each domain in a step."""
    weight: float = 0.5
    """Of the sum of the domains' two losses; a half is the published mean over all images."""
    factor: float = 1.0
    """What the reversed gradient is multiplied by at the end of its schedule."""
    lr: float = 0.01
    """Learning rate of the first step."""
    examples: int = 5000
    """Test images, a seeded subset."""
    seeds: tuple[int, ...] = (0, 1)
    data: str = "mnist"
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def picture(rng: np.random.Generator, size: int = 128) -> np.ndarray:
    """Coloured noise with the 1/f amplitudes of natural images, ``[size, size, 3]`` in [0, 1]."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf  # no mean
    spectrum = np.fft.rfft2(rng.standard_normal((3, size, size))) / frequency
    noise = np.moveaxis(np.fft.irfft2(spectrum, (size, size)), 0, 2)
    noise = (noise / noise.std()) @ rng.normal(0, 3**-0.5, (3, 3))  # channels go together
    return np.clip(rng.uniform(0.2, 0.8, 3) + 0.25 * noise, 0, 1)


def coloured(digits: Dataset) -> Dataset:
    """The digits with three equal channels: the source domain."""
    return dataclasses.replace(digits, x=np.repeat(digits.x, 3, axis=3))


def textured(digits: Dataset, pictures: int, seed: int) -> Dataset:
    """``|texture - digit|`` on random cuts of the pictures: the target domain, as MNIST-M."""
    rng = np.random.default_rng((seed, digits.split == "train"))
    height, width = digits.x.shape[1:3]
    bank = np.stack([picture(rng) for _ in range(pictures)])
    x = coloured(digits).x / np.float32(255)
    for image in x:
        top, left = rng.integers(0, np.array(bank.shape[1:3]) - (height, width), endpoint=True)
        cut = bank[rng.integers(pictures), top : top + height, left : left + width]
        image[:] = np.abs(cut - image)
    return dataclasses.replace(digits, x=np.round(255 * x).astype(np.uint8), name="textured")


def training(config: Config, train: Dataset, other: Dataset, seed: int, factor: float) -> Training:
    """One arm of the study; with a factor of 0 the features do not hear the domain head."""
    rate = lambda step: dann_learning_rate(step / config.steps, config.lr)
    return Training(
        module=Heads(mean=(0.3,)),
        objective=DANN(factor=factor, weight=config.weight, total_steps=config.steps),
        optimizer=optax.sgd(rate, momentum=0.9),
        train=train,
        unlabelled=other,
        steps=config.steps,
        batch_size=config.batch_size,
        seed=seed,
    )


def main(config: Config, run_dir: Path, progress: Any = None) -> dict[str, Any]:
    digits = load(config.data, "train", config.data_dir)
    test_digits = load(config.data, "test", config.data_dir).subset(config.examples)
    rows = []
    lines = ["seed  trained by    source %  target %             domain told %"]
    for seed in config.seeds:
        some = digits.subset(config.size, seed)
        source, target = coloured(some), textured(some, config.pictures, seed)
        tests = {
            "source": coloured(test_digits),
            "target": textured(test_digits, config.pictures, seed),
        }
        both = [np.concatenate(list(domain.x[:12]), axis=1) for domain in (source, target)]
        save_png(run_dir / f"domains-seed-{seed}.png", to_float(np.concatenate(both)))
        arms = {
            "source only": (source, target, 0.0),
            "DANN": (source, target, config.factor),
            "target only": (target, source, 0.0),
        }
        for name, (train, other, factor) in arms.items():
            arm = training(config, train, other, seed, factor)
            folder = run_dir / f"{name.replace(' ', '-')}-seed-{seed}"
            settings = {**dataclasses.asdict(config), "seeds": seed}
            result = fit(arm, folder, config=settings, progress=progress)
            found = {
                domain: evaluate(result.last.model, test, {}, key=jax.random.key(seed)).clean
                for domain, test in tests.items()
            }
            told = 100 * result.history[-1]["domain_accuracy"]
            row = {domain: 100 * accuracy.value for domain, accuracy in found.items()}
            rows.append({"seed": seed, "arm": name, **row, "domain_accuracy": told})
            lines.append(
                f"{seed:4}  {name:11}  {row['source']:8.1f}  {found['target']}  {told:13.1f}"
            )
    return {"rows": rows, "examples": len(test_digits), "table": "\n".join(lines)}
