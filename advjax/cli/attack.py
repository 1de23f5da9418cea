"""``advjax attack IMAGE... --run RUN``: adversarial versions of images, as PNG files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from advjax.cli.console import Console, table
from advjax.cli.options import Budget, Method, Run, Which, attack_of
from advjax.cli.parsing import UsageError, parse
from advjax.cli.predict import logits_of, run_and_images, softmax

if TYPE_CHECKING:
    import numpy as np

PROG = "advjax attack"
DESCRIPTION = """Changes images so that a trained classifier takes them for something else.

Writes NAME_original.png (as the network sees it), NAME_modified.png and NAME_amplified.png (the
change, 50 times larger, around grey), and tells the predictions before, after, and after the
modified image has been rounded to 8 bits and read back. Images of another size are resized.

examples:
  advjax attack digit.png --run runs/demo/robust --eps 0.2
  advjax attack *.jpg --run runs/cifar10 --eps 8/255 --target ship --steps 100 --out adversarial"""


@dataclasses.dataclass(frozen=True)
class Options:
    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE [IMAGE ...]")
    ] = ()
    """PNG or JPEG files."""
    run: Path | None = None
    """The run folder (required), or an experiment file whose run is runs/FILE."""
    checkpoint: Which = "best"
    """The checkpoint with the best robust accuracy while training, or the last one."""
    attack: Method = "pgd"
    """How to attack."""
    eps: float | None = None
    """Radius (required), in units of images in [0, 1]; 8/255 is taken."""
    budget: tyro.conf.OmitArgPrefixes[Budget] = dataclasses.field(default_factory=Budget)
    target: str | None = None
    """Class to reach, by name or number. None: any class but the one predicted."""
    out: Path = Path(".")
    """Folder for the images; made when missing."""
    amplify: float = 50.0
    """How much larger the change is shown."""
    absolute: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the size of the change (|change| x 50, black where there is none), not its sign."""
    seed: int = 0
    """Decides the random start."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of a table."""


def main(args: Sequence[str]) -> None:
    options = parse(Options, args, prog=PROG, description=DESCRIPTION)
    if options.images and options.eps is None:
        raise UsageError("no radius given: --eps, for instance 0.1 or 8/255")
    twice = [stem for stem, n in Counter(path.stem for path in options.images).items() if n > 1]
    if twice:
        raise UsageError(f"two images are called {twice[0]}, their results would be one file")
    run = run_and_images(options.images, options.run, options.checkpoint, PROG)
    target = None if options.target is None else run.class_index(options.target)
    found = _attack(run, options, target)
    console = Console(options.json)
    show = lambda said: f"{run.class_name(said['class'])} {100 * said['probability']:.1f} %"
    stages = ("before", "after", "after_png")
    rows = [
        [f["image"], *(show(f[stage]) for stage in stages), f"{f['distance']:.4g}"] for f in found
    ]
    header = ["image", "before", "after", "after as PNG", options.budget.norm]
    console.say(table(header, rows))
    for f in found:
        height, width = run.input_shape[:2]
        if f["size"] != [height, width]:
            console.say(f"{f['image']} was resized from {f['size'][1]}x{f['size'][0]} to "
                        f"{width}x{height}, the network's input")  # fmt: skip
    n = sum(f["success"] for f in found)
    goal = "changed class" if target is None else f"became {run.class_name(target)}"
    console.say(f"{n} of {len(found)} {goal} (as PNG); images in {options.out}")
    console.result({"run": str(run.folder), "checkpoint": options.checkpoint, "images": found})


def _attack(run: Run, options: Options, target: int | None) -> list[dict[str, Any]]:
    """Attacks all images at once and writes the files; one record per image."""
    import jax
    import numpy as np

    from advjax.attacks import Targeted
    from advjax.evaluation.images import amplified, image_size, load_image, save_png

    assert options.eps is not None
    attack = attack_of(options.attack, options.eps, options.budget)
    x = np.stack([load_image(path, run.input_shape) for path in options.images])
    before = _predicted(run, x)
    if target is None:
        y = np.array([said["class"] for said in before], np.int32)
    else:
        attack = Targeted(attack=attack)
        y = np.full(len(x), target, np.int32)
    record = attack.run(jax.random.key(options.seed), run.model, x, y)
    x_adv = np.asarray(record.x_adv)
    options.out.mkdir(parents=True, exist_ok=True)
    files = []
    for path, original, modified in zip(options.images, x, x_adv, strict=True):
        shown = amplified(original, modified, options.amplify, absolute=options.absolute)
        names = {}
        for kind, image in (("original", original), ("modified", modified), ("amplified", shown)):
            name = options.out / f"{path.stem}_{kind}.png"
            save_png(name, image)
            names[kind] = str(name)
        files.append(names)
    after = _predicted(run, x_adv)
    read_back = np.stack([load_image(f["modified"], run.input_shape) for f in files])
    after_png = _predicted(run, read_back)
    distances = np.asarray(record.distance)
    return [
        {
            "image": str(options.images[i]),
            "size": list(image_size(options.images[i])),
            "before": before[i],
            "after": after[i],
            "after_png": after_png[i],
            "success": bool((after_png[i]["class"] == y[i]) == (target is not None)),
            "distance": float(distances[i]),
            "files": files[i],
        }
        for i in range(len(x))
    ]


def _predicted(run: Run, x: np.ndarray) -> list[dict[str, Any]]:
    """Class, name and probability of every image."""
    shares = softmax(logits_of(run.model, x))
    best = shares.argmax(axis=-1)
    return [
        {"class": int(k), "name": run.classes[k], "probability": float(share[k])}
        for k, share in zip(best, shares, strict=True)
    ]
