"""A new defence in 30 lines, and what is left of it under attacks that know it.

``RandomGrid`` rounds every image to grey levels whose spacing and offset are drawn anew for each
prediction, around a network that was trained on such images. It is the example of
docs/new_defence.md, which goes through this file from top to bottom: copy it to try an idea.

Source: none for the defence, that is its point; its parts are old (rounding: Xu et al., NDSS 2018;
random rounding: Zhang, Liang, AISTATS 2019). How it is judged: Athalye et al., ICML 2018 (arXiv
1802.00420); Carlini et al., 2019 (arXiv 1902.06705); Tramer et al., NeurIPS 2020 (arXiv
2002.08347).

    advjax train experiments/prototype_defence.py --data-dir tensorflow_datasets

Hardware and time: 2 CPU cores, about 3 minutes for two seeds (350 s of CPU time).

Expected: under PGD, with or without EOT, accuracy stays near the clean one and all three signs of
masked gradients show; under BPDA with EOT most of that is gone. The worst case is to be compared
with the network inside without the grid, not with zero.

Measured, seeds 0 and 1, on 100 Fashion-MNIST test images each (intervals up to 10 points wide on
either side):

    accuracy %                             plain          inside        defended
    clean                            80.0   80.0     79.0   80.0     79.0   80.0
    PGD-40                           13.0   10.0     14.0   16.0     78.0   78.0
    PGD-40 at eps 1                                                  50.0   50.0
    PGD-40, EOT                                                      79.0   77.0
    AutoAttack standard                                              70.0   73.0
    transfer                                                         25.0   28.0
    Square, EOT                                                      68.0   64.0
    PGD-40, BPDA                                                     27.0   31.0
    PGD-40, BPDA + EOT                                               27.0   27.0
    AutoAttack rand, BPDA + EOT                                      26.0   31.0
    worst case                       13.0    9.0     14.0   16.0     18.0   18.0
    APGD                             13.0    9.0     14.0   17.0

All three signs showed with both seeds. What is left in the worst case, 18, is 4 and 2 points more
than the network inside has without the grid: within the intervals, nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from advjax import (
    APGD,
    EOT,
    PGD,
    AutoAttack,
    Linf,
    Square,
    Standard,
    Training,
    Transferred,
    create,
    evaluate,
    fit,
    load,
    pytree,
    replace,
    static,
)
from advjax.evaluation import Accuracy, Evaluation
from advjax.training import optimizer


@pytree
class RandomGrid:
    """Rounds every image to evenly spaced grey levels, drawn anew for each prediction.

    Attributes:
      model: ``model(x) -> logits [B, K]``.
      spacing: the widest distance between levels; the narrowest is a quarter of it.
      straight_through: differentiate as if there were no rounding, for attacks that know it.
    """

    model: Any = dataclasses.field(kw_only=False)
    spacing: Any = 0.4
    straight_through: bool = static(default=False)
    stochastic = True  # so the model is called with a key per image

    def __call__(self, x: jax.Array, *, key: jax.Array) -> jax.Array:
        seen = jax.vmap(self.round)(key, x)
        if self.straight_through:
            seen = x + jax.lax.stop_gradient(seen - x)
        return self.model(seen)

    def round(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """One image on one grid; over the offsets its mean is the image itself."""
        width, offset = jax.random.uniform(key, (2,))
        width = self.spacing * (0.25 + 0.75 * width)
        return (jnp.round(x / width + offset) - offset) * width

    def adaptive(self) -> RandomGrid:
        """The same answers, with a gradient."""
        return replace(self, straight_through=True)


MODELS = ("plain", "inside", "defended")  # the last is RandomGrid around the second


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float = 0.1
    """L-inf radius."""
    spacing: float = 0.4
    """Widest distance between grey levels."""
    samples: int = 20
    """Draws per gradient of the attacks that average over them."""
    queries: int = 1000
    """Queries of the attack without gradients; each is answered by five draws."""
    size: int = 10000
    """Training images, a subset drawn by the seed."""
    epochs: int = 5
    batch_size: int = 100
    seeds: tuple[int, ...] = (0, 1)
    examples: int = 100
    """Test images, a subset drawn by the seed."""
    data: str = "fashion_mnist"
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def trained(config: Config, seed: int, folder: Path, progress: Any, augment: Any = None) -> Any:
    """A small network, trained on images that went through ``augment``."""
    training = Training(
        module=create("mnist_fast"),
        objective=Standard(),
        optimizer=optimizer("adam", 1e-3),
        train=load(config.data, "train", config.data_dir).subset(config.size, seed),
        epochs=config.epochs,
        batch_size=config.batch_size,
        augment=augment,
        seed=seed,
    )
    settings = {**dataclasses.asdict(config), "seeds": seed}
    return fit(training, folder, config=settings, progress=progress).last.model


def naive(config: Config) -> dict[str, Any]:
    """What is run first, and looks good."""
    ball = Linf(config.eps)
    pgd = PGD(ball=ball, step_size=config.eps / 10, steps=40)
    return {
        "PGD-40": pgd,
        "PGD-40 at eps 1": replace(pgd, ball=Linf(1.0), step_size=0.1),
        "PGD-40, EOT": EOT(pgd, samples=config.samples),
        "AutoAttack standard": AutoAttack(ball=ball),
    }


def masking_signs(found: Evaluation, transfer: Accuracy) -> list[str]:
    """Of a naive evaluation, what cannot be true of a defence that works."""
    signs, pgd = [], found.attacks["PGD-40"]
    blind = int((pgd.zero_gradient[pgd.attacked] > 0).sum())
    if blind:
        signs.append(f"no gradient at {blind} of {int(pgd.attacked.sum())} images")
    unbounded = found.robust["PGD-40 at eps 1"]
    if unbounded.low > 0.1:
        signs.append(f"{100 * unbounded.value:.1f} % stand up to PGD that may paint any picture")
    if transfer.value < found.robust["PGD-40"].value:
        signs.append("images crafted on another model do better than those crafted on this one")
    return signs


def adaptive(config: Config, inside: Any) -> dict[str, Any]:
    """Attacks that know the defence; they are run on ``defended.adaptive()``."""
    ball = Linf(config.eps)
    pgd = PGD(ball=ball, step_size=config.eps / 10, steps=40)
    return {
        "transfer": Transferred(APGD(ball=ball, until_success=False), source=inside),
        "Square, EOT": EOT(Square(ball=ball, steps=config.queries), samples=5),
        "PGD-40, BPDA": pgd,
        "PGD-40, BPDA + EOT": EOT(pgd, samples=config.samples),
        "AutoAttack rand, BPDA + EOT": AutoAttack(ball=ball, version="rand"),
    }


def main(config: Config, run_dir: Path, progress: Any = None) -> dict[str, Any]:
    whole = load(config.data, "test", config.data_dir)
    rows: list[dict[str, Any]] = []
    signs = []
    for seed in config.seeds:
        test = whole.subset(config.examples, seed)
        key, folder = jax.random.key(seed), run_dir / f"seed-{seed}"
        plain = trained(config, seed, folder / "plain", progress)
        draw = RandomGrid(plain, spacing=config.spacing).round
        inside = trained(config, seed, folder / "inside", progress, augment=jax.vmap(draw))
        defended = RandomGrid(inside, spacing=config.spacing)

        fixed = {"PGD-40": naive(config)["PGD-40"], "APGD": APGD(ball=Linf(config.eps))}
        without = [evaluate(model, test, fixed, key=key) for model in (plain, inside)]
        blind = evaluate(defended, test, naive(config), key=key)
        knowing = evaluate(defended.adaptive(), test, adaptive(config, inside), key=key)
        worst = Accuracy(int((blind.standing() & knowing.standing()).sum()), len(test))
        signs.append(masking_signs(blind, knowing.robust["transfer"]))

        ours = {"clean": blind.clean, **blind.robust, **knowing.robust, "worst case": worst}
        others = [{"clean": f.clean, **f.robust, "worst case": f.worst} for f in without]
        for name in {**ours, **others[0]}:
            found = dict(zip(MODELS, (each.get(name) for each in (*others, ours)), strict=True))
            rows.append({"seed": seed, "attack": name, **found})
    return {
        "rows": [{k: _plain(v) for k, v in row.items()} for row in rows],
        "signs": signs,
        "examples": config.examples,
        "table": table(rows, signs),
    }


def _plain(value: Any) -> Any:
    return 100 * value.value if isinstance(value, Accuracy) else value


def table(rows: list[dict[str, Any]], signs: list[list[str]]) -> str:
    """One line an attack; the figures of the seeds side by side."""
    lines = [f"{'accuracy %':28}" + "".join(f"{name:>16}" for name in MODELS)]
    for attack in dict.fromkeys(row["attack"] for row in rows):
        cells = []
        for model in MODELS:
            found = [row[model] for row in rows if row["attack"] == attack]
            cells.append("  ".join(f"{100 * a.value:5.1f}" for a in found if a is not None))
        lines.append(f"{attack:28}" + "".join(f"{cell:>16}" for cell in cells))
    for i, each in enumerate(signs):
        lines += [f"sign of masking, network {i + 1}: {sign}" for sign in each]
    return "\n".join(line.rstrip() for line in lines)
