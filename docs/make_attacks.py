"""Writes docs/attacks.md from the table of attacks, and docs/attacks.png with a picture of each.

    python docs/make_attacks.py            # about 3 minutes on 2 cores
    python docs/make_attacks.py --text     # the page alone

The pictures are of one handwritten digit of scikit-learn's set, 8 x 8 pixels, against a small
network trained on that set for a few seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import advjax
from advjax.attacks import registry
from advjax.attacks.registry import ENTRIES, Entry

HERE = Path(__file__).resolve().parent
NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1", "l0": "L0"}
SEES = {"gradient": "gradients", "scores": "scores", "labels": "labels"}
EPS = {"linf": 0.2, "l2": 3.0, "l1": 30.0, "l0": 80.0}  # of the pictures


def page() -> str:
    """docs/attacks.md."""
    lines = [
        "# Attacks",
        "",
        "Made by `python docs/make_attacks.py` from the table in `advjax/attacks/registry.py`.",
        "Every attack is called as `attack(key, model, x, y)`; `attack.run(...)` returns the",
        "record, with the passes spent on every example. `Targeted(attack)` aims where it can.",
        "Cost is forward + backward passes per example, n the steps, K the classes; the pass that",
        "judges the result comes on top. An attack that sees scores or labels gets them through",
        "`Scores(model)` or `Labels(model)`, which tell nothing else. Defaults are those on a ball",
        "of eps 1 where they follow from it.",
        "",
        "Attacks made of attacks: `Restarts`, `WorstOf`, `Targeted`, `EOT` (randomised models, and",
        "random transforms: `Transformed(model, transform)`), `MinimalNorm`, `Lattice` (results",
        "that survive 8 bits), `Transferred` (crafted on another model, which `train_substitute`",
        "may have made from labels). `every_target` runs an attack towards all classes. `bpda`",
        "gives a step without a gradient one.",
    ]
    for family in dict.fromkeys(e.family for e in ENTRIES):
        lines += [
            "",
            f"## {family}",
            "",
            "| attack | norms | targeted | sees | defaults | cost | source |",
            "|---|---|---|---|---|---|---|",
        ]
        for e in (e for e in ENTRIES if e.family == family):
            norms = ", ".join(NORMS[n] for n in e.norms) or "none"
            lines.append(
                f"| `{e.name}` | {norms} | {'yes' if e.targeted else 'no'} | {SEES[e.oracle]} "
                f"| {defaults(e)} | {e.cost} | {e.source} |"
            )
    if (HERE / "attacks.png").exists():
        lines += [
            "",
            "## One digit, every attack",
            "",
            "The image, what the attack made of it with its defaults, and the change, amplified",
            "around grey.",
            f"Fixed budgets are {', '.join(f'{v:g} in {NORMS[k]}' for k, v in EPS.items())}.",
            "",
            "![The same digit under every attack](attacks.png)",
            "",
        ]
    else:
        lines.append("")
    return "\n".join(lines)


def defaults(entry: Entry) -> str:
    """The numbers that the attack has if one says nothing but the ball."""
    norm = entry.norms[0] if entry.norms else "l2"
    made = entry.make(registry.ball_of(norm, 1.0 if entry.limited and entry.norms else np.inf))
    if not dataclasses.is_dataclass(made) or entry.name == "AutoAttack":
        return "version standard"
    shown = []
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
            value = value.item()
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and np.isfinite(value) and field.name != "delta":
            text = f"{int(value):,}" if value == int(value) else f"{value:.4g}"
            shown.append(f"{field.name} {text}")
    return ", ".join(shown)


def picture(out: Path) -> None:
    """docs/attacks.png: a contact sheet."""
    from PIL import Image, ImageDraw

    from advjax.report.images import amplification, amplified

    model, x, y, others = victim()
    cells = []
    for entry in ENTRIES:
        for norm in entry.norms or ("",):
            eps = EPS[norm] if norm and entry.limited else np.inf
            ball = registry.ball_of(norm or "l2", eps)
            attack = trained(entry, ball, model, others) or entry.make(ball)
            record = attack.run(jax.random.key(0), model, x, y)
            label = int(jnp.argmax(model(record.x_adv), axis=1)[0])
            cells.append((entry.name, norm, np.asarray(record.x_adv[0]), label, record))
            print(entry.name, norm, label, float(record.distance[0]), flush=True)
    side, gap, text, columns = 84, 10, 30, 4
    width, height = 3 * side + 2 * 2 + gap, side + text + gap
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    clean = np.asarray(x[0])
    for i, (name, norm, x_adv, label, record) in enumerate(cells):
        left, top = gap + (i % columns) * width, gap + (i // columns) * height
        change = amplified(clean, x_adv, amplification(clean, x_adv))
        for j, image in enumerate((clean, x_adv, change)):
            levels = Image.fromarray(np.round(np.clip(image[..., 0], 0, 1) * 255).astype(np.uint8))
            levels = levels.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(levels, (left + j * (side + 2), top + text))
        draw.text((left, top), f"{name} {NORMS.get(norm, '')}", fill="black")
        size = f", distance {float(record.distance[0]):.3g}" if norm else ""
        draw.text((left, top + 13), f"{int(y[0])} read as {label}{size}", fill="black")
    sheet.save(out, optimize=True)


def trained(entry: Entry, ball: Any, model: Any, others: tuple[Any, Any]) -> Any:
    """What is trained once for all images, on images that are not in the picture."""
    key = jax.random.key(1)
    if entry.name == "Patch":
        return advjax.train_patch(key, model, *others, scale=(0.5, 0.5), steps=300)
    if entry.name == "Universal":
        return advjax.train_universal(key, model, *others, ball=ball)
    return None


def victim() -> tuple[Any, jax.Array, jax.Array, tuple[Any, Any]]:
    """A network trained on the digits, a test digit that it reads right, and other test digits."""
    import optax

    training = advjax.Training(
        module=advjax.create("lenet5", filters=(8, 16), width=64),
        objective=advjax.Standard(),
        optimizer=optax.adam(2e-3),
        train=advjax.load("digits"),
        epochs=15,
    )
    model = advjax.fit(training, devices=jax.local_devices()[:1]).last.model
    test = advjax.load("digits", "test")
    x, y = jnp.asarray(test.x[:50] / np.float32(255)), jnp.asarray(test.y[:50], jnp.int32)
    right = np.flatnonzero(np.asarray(jnp.argmax(model(x), axis=1) == y))[1]
    others = test.x[50:] / np.float32(255), np.asarray(test.y[50:], np.int32)
    return model, x[right : right + 1], y[right : right + 1], others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--text", action="store_true", help="the page alone, not the picture")
    args = parser.parse_args()
    (HERE / "attacks.md").write_text(page())
    if not args.text:
        picture(HERE / "attacks.png")


if __name__ == "__main__":
    main()
