"""``advjax attack IMAGE... --run RUN``: adversarial versions of images, as PNG files."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from advjax.cli.console import Console
from advjax.cli.methods import Budget, make, needs_radius, norm_of, parse_with_attacks
from advjax.cli.options import Images, Run
from advjax.cli.parsing import UsageError
from advjax.cli.predict import logits_of, softmax
from advjax.report.text import ruled

if TYPE_CHECKING:
    import numpy as np

    from advjax.attacks import Attack

PROG = "advjax attack"
DESCRIPTION = """Changes images so that a trained classifier takes them for something else.

Writes NAME_original.png (as the network sees it), NAME_modified.png and NAME_amplified.png (the
change, 50 times larger, around grey), and tells the predictions before, after, and after the
modified image has been rounded to 8 bits and read back. Images of another size are resized.

Any attack of docs/attacks.md may be named, and all its fields are options: advjax attack --attack
ddn --help lists those of ddn. Attacks on a budget change an image by up to --eps. Those that look
for a small change, such as ddn, need none. penalised (a change in the sense of --penalty) shows it
without its sign (--signed: with it), in all norms.

examples:
  advjax attack digit.png --run runs/demo/robust --eps 0.2
  advjax attack digit.png apgd --run runs/demo/robust --eps 0.2 --loss dlr
  advjax attack *.jpg --run runs/cifar10 --eps 8/255 --target ship --steps 100 --out adversarial
  advjax attack face.png --run runs/faces --method penalised --penalty l1 --confidence 1"""


@dataclasses.dataclass(frozen=True)
class Options(Images):
    attack: Annotated[str, tyro.conf.arg(aliases=["--method"])] = "pgd"
    """How to attack: pgd, apgd, ddn, ...; the name may also follow the images. Its fields are
    options too."""
    eps: float | None = None
    """Radius, in units of images in [0, 1], such as 0.1 or 8/255; required by attacks on a budget.
    """
    budget: tyro.conf.OmitArgPrefixes[Budget] = dataclasses.field(default_factory=Budget)
    target: str | None = None
    """Class to reach, by name or number. None: any class but the one predicted."""
    out: Path = Path(".")
    """Folder for the images; made when missing."""
    amplify: float = 50.0
    """How much larger the change is shown."""
    absolute: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the size of the change (|change| x 50, black where there is none), not its sign."""
    signed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """For penalised: show the change with its sign, around grey, as for the other attacks."""
    seed: int = 0
    """Decides the random start."""


def main(args: Sequence[str]) -> None:
    leading = [*itertools.takewhile(lambda arg: not arg.startswith("-"), args)]
    if len(leading) > 1 and not Path(leading[-1]).suffix and not Path(leading[-1]).exists():
        args = [*leading[:-1], "--attack", leading[-1], *args[len(leading) :]]
    options, given, (entry,) = parse_with_attacks(Options, args, PROG, DESCRIPTION)
    penalised = entry.name == "Penalised"
    if options.signed and not penalised:
        raise UsageError(f"--signed is for penalised, not for {entry.name.lower()}")
    if options.images and options.eps is None and needs_radius(entry):
        raise UsageError("no radius given: --eps, for instance 0.1 or 8/255")
    if options.eps is not None and not entry.norms:
        raise UsageError(f"{entry.name.lower()} has no norm that --eps could limit")
    twice = [stem for stem, n in Counter(path.stem for path in options.images).items() if n > 1]
    if twice:
        raise UsageError(f"two images are called {twice[0]}, their results would be one file")
    run = options.load(PROG)
    target = None if options.target is None else run.class_index(options.target)
    if target is not None and not entry.targeted:
        raise UsageError(f"{entry.name.lower()} has no target; --attack apgd or pgd has")
    attack = make(entry, options.eps, options.budget, given)
    absolute = options.absolute or (penalised and not options.signed)
    found = _attack(run, options, attack, target, absolute)
    console = Console(options.json)
    show = lambda said: f"{run.class_name(said['class'])} {100 * said['probability']:.1f} %"
    stages = ("before", "after", "after_png")
    norm = None if penalised else norm_of(entry, options.budget)
    norms = ("linf", "l2", "l1") if norm is None else (norm,)
    rows = [
        [f["image"], *map(show, map(f.get, stages)), *(f"{f['distances'][n]:.4g}" for n in norms)]
        for f in found
    ]
    header = ["image", "before", "after", "after as PNG", *norms]
    console.say(ruled(header, rows))
    for f in found:
        height, width = run.input_shape[:2]
        if f["size"] != [height, width]:
            console.say(f"{f['image']} was resized from {f['size'][1]}x{f['size'][0]} to "
                        f"{width}x{height}, the network's input")  # fmt: skip
    n = sum(f["success"] for f in found)
    goal = "changed class" if target is None else f"became {run.class_name(target)}"
    console.say(f"{n} of {len(found)} {goal} (as PNG); images in {options.out}")
    console.result({"run": str(run.folder), "checkpoint": options.checkpoint, "images": found})


def _attack(
    run: Run, options: Options, attack: Attack, target: int | None, absolute: bool
) -> list[dict[str, Any]]:
    """Attacks all images at once and writes the files; one record per image."""
    import jax
    import numpy as np

    from advjax.attacks import Targeted
    from advjax.report.images import amplified, image_size, load_image, save_png

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
        shown = amplified(original, modified, options.amplify, absolute=absolute)
        names = {}
        for kind, image in (("original", original), ("modified", modified), ("amplified", shown)):
            name = options.out / f"{path.stem}_{kind}.png"
            save_png(name, image)
            names[kind] = str(name)
        files.append(names)
    after = _predicted(run, x_adv)
    read_back = np.stack([load_image(f["modified"], run.input_shape) for f in files])
    after_png = _predicted(run, read_back)
    return [
        {
            "image": str(options.images[i]),
            "size": list(image_size(options.images[i])),
            "before": before[i],
            "after": after[i],
            "after_png": after_png[i],
            "success": bool((after_png[i]["class"] == y[i]) == (target is not None)),
            "distance": float(record.distance[i]),
            "distances": _distances(x_adv[i] - x[i]),
            "files": files[i],
        }
        for i in range(len(x))
    ]


def _distances(change: np.ndarray) -> dict[str, float]:
    """The change's size in every norm; ``l0`` counts the values that moved."""
    import numpy as np

    flat = np.abs(change.astype(np.float64)).ravel()
    return {
        "linf": float(flat.max()),
        "l2": float(np.sqrt(np.sum(flat**2))),
        "l1": float(flat.sum()),
        "l0": int(np.count_nonzero(flat)),
    }


def _predicted(run: Run, x: np.ndarray) -> list[dict[str, Any]]:
    """Class, name and probability of every image."""
    shares = softmax(logits_of(run.model, x))
    best = shares.argmax(axis=-1)
    return [
        {"class": int(k), "name": run.classes[k], "probability": float(share[k])}
        for k, share in zip(best, shares, strict=True)
    ]
