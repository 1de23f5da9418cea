"""Gradient reversal carries digits from MNIST over to coloured textures without their labels.

The target domain is like MNIST-M: ``|texture - digit|``. Its textures are cut from noise with the
1/f amplitudes of natural images and channels that go together, made by the seed, instead of the
photographs of BSDS500. Every arm's statistics of BatchNorm are those of the images it trains on.

Source: Ganin, Lempitsky, ICML 2015 (arXiv 1409.7495); Ganin et al., JMLR 2016 (arXiv 1505.07818).
Published, MNIST to MNIST-M, target accuracy: trained on the source .5225, with gradient reversal
.7666, trained on the target .9596.

    advjax train experiments/domain_adaptation.py --data-dir tensorflow_datasets

Hardware and time: one CPU core, shared with other work, 15 to 20 s a training; 2 min 14 s for all.

Expected: for every seed, target accuracy grows from the source-only arm to DANN, by 4 to 12 points,
and from there to target only. The published gain of 24 is not reached: the domain head still tells
the domains.

Measured, target accuracy of seeds 0 and 1: source only 28.1 and 33.9 %, DANN 38.2 and 38.6, target
only 84.3 and 84.5; domain told by the head of DANN 97.4 and 93.9 %. With factor 0 the "DANN" arm,
whose BatchNorm sees both domains, has 30.8 and 32.3: the reversal itself gives 7.4 and 6.4 points.

Chosen by 2,000 held-out training images, seed 5; target accuracy in one short trial each. This
network, 500 steps, 37.6, with factor 0 (375 steps) 34.2; factor 2, clipped, 37.0; factor 2, rate
2e-3, 40.0 after 900 steps of 1,200. Convolutions of stride 2: source only 17.3, DANN 34 to 37.
Without BatchNorm (``advjax.Heads``): source only 27.3; DANN by clipped SGD 25.8, by Adam at 2e-3
13.9. With the published schedule of the factor the domain head had won before it grew; that and
textures of independent colours (source only 10.2, DANN 18 to 20) were given up for these.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from advjax import DANN, Training, evaluate, fit, load
from advjax.data import Dataset, to_float
from advjax.models.heads import ReverseGradient
from advjax.models.layers import Network, batch_norm, conv, dense, flatten, logits, relu
from advjax.models.pooling import max_pool
from advjax.report.images import save_png
from advjax.training import optimizer, schedule


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 20_000
    """Training digits, a seeded subset; the target domain shows the same ones."""
    pictures: int = 200
    """Pictures that the textures of a split are cut from."""
    steps: int = 500
    batch_size: int = 32
    """Images of each domain in a step."""
    filters: tuple[int, ...] = (16, 24)
    """Of the 5x5 convolutions."""
    weight: float = 1.0
    """Of the sum of the domains' two losses."""
    factor: float = 1.0
    """What the reversed gradient is multiplied by, from the first step on; 0 leaves of DANN that
    BatchNorm sees both domains."""
    lr: float = 1e-3
    """Adam's learning rate in the first step; its cosine schedule ends at 0."""
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
    noise /= noise.std()
    grey = noise.mean(axis=2, keepdims=True) * 3**0.5
    noise = 0.9**0.5 * grey + 0.1**0.5 * noise  # channels of photographs go together
    colour = 0.3 * rng.standard_normal() + 0.1 * rng.standard_normal(3)
    return np.clip(0.37 * np.exp(colour + 0.45 * noise), 0, 1)


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


class NormedHeads(Network):
    """``advjax.Heads`` for two domains, with BatchNorm before every ReLU."""

    filters: tuple[int, ...] = (16, 24)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Any:
        norm = lambda x: relu(batch_norm(x, train=train, axis_name=self.axis_name))
        x = self.prepare(x)
        for filters in self.filters:
            x = max_pool(norm(conv(x, filters, 5)))
        x = flatten(x)
        label = logits(norm(dense(norm(dense(x, 100)), 100)), self.classes)
        if not train and not self.is_initializing():
            return label
        domain = logits(norm(dense(ReverseGradient()(x), 100)), 1)
        return {"label": label, "domain": domain} if train else label


def training(config: Config, train: Dataset, other: Dataset, seed: int, factor: float) -> Training:
    """One arm of the study; with a factor of 0 the features do not hear the domain head."""
    rate = schedule("cosine_decay", config.lr, config.steps)
    return Training(
        module=NormedHeads(filters=config.filters, mean=(0.3,), std=(0.3,)),
        objective=DANN(factor=factor, weight=config.weight),
        optimizer=optimizer("adam", rate, b1=0.5),
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
            "source only": (source, source, 0.0),  # its statistics are those of the source alone
            "DANN": (source, target, config.factor),
            "target only": (target, target, 0.0),
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
            last = [row for row in result.history if row["kind"] == "train"][-100:]
            told = 100 * float(np.mean([row["domain_accuracy"] for row in last]))
            row = {domain: 100 * accuracy.value for domain, accuracy in found.items()}
            rows.append({"seed": seed, "arm": name, **row, "domain_accuracy": told})
            lines.append(
                f"{seed:4}  {name:11}  {row['source']:8.1f}  {found['target']}  {told:13.1f}"
            )
    return {"rows": rows, "examples": len(test_digits), "table": "\n".join(lines)}
