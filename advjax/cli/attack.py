"""``advjax attack IMAGE... --run RUN``: adversarial versions of images, as PNG files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from advjax.cli.console import Console
from advjax.cli.options import Budget, Method, Run, Which, attack_of
from advjax.cli.parsing import UsageError, parse
from advjax.cli.predict import logits_of, run_and_images, softmax
from advjax.report.text import ruled

if TYPE_CHECKING:
    import numpy as np

    from advjax.attacks import Attack

PROG = "advjax attack"
DESCRIPTION = """Changes images so that a trained classifier takes them for something else.

Writes NAME_original.png (as the network sees it), NAME_modified.png and NAME_amplified.png (the
change, 50 times larger, around grey), and tells the predictions before, after, and after the
modified image has been rounded to 8 bits and read back. Images of another size are resized.

Every method but penalised changes an image by up to --eps. penalised looks for a small change, in
the sense of --penalty, in 1000 steps of 0.001 (--steps, --step-size), and needs no --eps; it tells
the change's size in all norms and shows it without its sign (--signed: with it).

examples:
  advjax attack digit.png --run runs/demo/robust --eps 0.2
  advjax attack *.jpg --run runs/cifar10 --eps 8/255 --target ship --steps 100 --out adversarial
  advjax attack face.png --run runs/faces --method penalised --penalty l1 --confidence 1"""


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
    attack: Annotated[Method | Literal["penalised"], tyro.conf.arg(aliases=["--method"])] = "pgd"
    """How to attack."""
    eps: float | None = None
    """Radius (required, but for penalised), in units of images in [0, 1]; 8/255 is taken."""
    budget: tyro.conf.OmitArgPrefixes[Budget] = dataclasses.field(default_factory=Budget)
    penalty: Literal["l1", "l2", "linf"] | None = None
    """For penalised: few pixels change (l1), all a little (l2), all alike (linf). None: l2."""
    weight: float | None = None
    """For penalised: how much the penalty counts. None: less and less, until the class changes."""
    confidence: float | None = None
    """For penalised: by how much the new class must lead, in logits; a lead of 0 may not survive
    the rounding to 8 bits. None: 0.5."""
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
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of a table."""


def main(args: Sequence[str]) -> None:
    options = parse(Options, args, prog=PROG, description=DESCRIPTION)
    penalised = options.attack == "penalised"
    if options.images and options.eps is None and not penalised:
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
    norms = ("linf", "l2", "l1") if penalised else (options.budget.norm,)
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


def _attack(run: Run, options: Options, target: int | None) -> list[dict[str, Any]]:
    """Attacks all images at once and writes the files; one record per image."""
    import jax
    import numpy as np

    from advjax.attacks import Targeted
    from advjax.report.images import amplified, image_size, load_image, save_png

    attack: Any = _method(options)
    x = np.stack([load_image(path, run.input_shape) for path in options.images])
    before = _predicted(run, x)
    if target is None:
        y = np.array([said["class"] for said in before], np.int32)
    else:
        if options.attack == "autoattack":
            raise UsageError("autoattack has no target; --attack apgd or pgd has")
        attack = Targeted(attack=attack)
        y = np.full(len(x), target, np.int32)
    record = attack.run(jax.random.key(options.seed), run.model, x, y)
    x_adv = np.asarray(record.x_adv)
    options.out.mkdir(parents=True, exist_ok=True)
    absolute = options.absolute or (options.attack == "penalised" and not options.signed)
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


def _method(options: Options) -> Attack:
    """The attack that the options describe.

    Raises:
      UsageError: for options that do not belong together.
    """
    from advjax import balls
    from advjax.attacks.penalised import Penalised

    own = ("penalty", "weight", "confidence")
    given = {name: getattr(options, name) for name in own if getattr(options, name) is not None}
    if options.attack != "penalised":
        if given or options.signed:
            name = next(iter(given), "signed")
            raise UsageError(f"--{name} is for penalised, not for {options.attack}")
        assert options.eps is not None
        return attack_of(options.attack, options.eps, options.budget)
    budget = options.budget
    if budget.restarts != 1:
        raise UsageError("penalised has no random start that --restarts could vary; use pgd")
    kind: Any = {"linf": balls.Linf, "l2": balls.L2, "l1": balls.L1}[budget.norm]
    ball = kind() if options.eps is None else kind(options.eps)
    fields: dict[str, Any] = {"penalty": "l2", "confidence": 0.5} | given
    for name in ("steps", "step_size"):
        if getattr(budget, name) is not None:
            fields[name] = getattr(budget, name)
    return Penalised(ball=ball, **fields)


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
