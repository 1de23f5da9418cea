"""``advjax evaluate RUN...``: clean and robust accuracy of trained classifiers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from advjax.cli.console import Console
from advjax.cli.methods import (
    Budget,
    make,
    needs_radius,
    norm_of,
    parse_with_attacks,
    starts_at_random,
)
from advjax.cli.options import Run, Trained, load_run
from advjax.cli.parsing import UsageError

if TYPE_CHECKING:
    from advjax.attacks.registry import Entry

PROG = "advjax evaluate"
DESCRIPTION = """Measures the accuracy of a trained classifier on clean and on attacked images.

RUN is a run folder, or an experiment file FILE.py whose run is runs/FILE. An image counts as robust
if it is classified right both clean and attacked. Results go to RUN/evaluations and the report.
Any attack of docs/attacks.md may be named, and all its fields are options: advjax evaluate --attack
apgd --help lists those of apgd.

examples:
  advjax evaluate runs/mnist_fast --eps 0.3 --steps 50 --step-size 0.01 --restarts 10
  advjax evaluate runs/mnist_fast --attack apgd --loss dlr --eps 0.3
  advjax evaluate runs/a runs/b --attack fgsm pgd --eps 2/255 4/255 8/255 --json"""

PICTURES = 12  # adversarial images kept for the report


@dataclasses.dataclass(frozen=True)
class Options(Trained):
    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")
    ] = ()
    """Run folders or experiment files."""
    attack: tuple[str, ...] = ()
    """Attacks, one or several: pgd, apgd, ddn, ...; their fields are options too. None: pgd where
    an eps is given, else clean accuracy alone."""
    eps: tuple[float, ...] = ()
    """Radii, one or several, for images in [0, 1], like 8/255. None: that of the run's own attack
    in this norm."""
    budget: tyro.conf.OmitArgPrefixes[Budget] = dataclasses.field(default_factory=Budget)
    targeted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Aim at a random wrong class of every image; reaching it is success."""
    examples: int | None = None
    """Evaluate so many images, drawn by the seed. None: all of them."""
    split: str = "test"
    """Which part of the data set."""
    data: str | None = None
    """Another data set: a name, an .npz file or a folder class/*.png. None: the run's own."""
    data_dir: Path | None = None
    """Where tensorflow-datasets are. None: where the run had them."""
    batch_size: int = 256
    """Images at a time; results do not depend on it."""
    seed: int = 0
    """Decides every random draw."""


def main(args: Sequence[str]) -> None:
    options, given, entries = parse_with_attacks(Options, args, PROG, DESCRIPTION)
    if not options.runs:
        raise UsageError(f"no run given: {PROG} RUN ...")
    console = Console(options.json)
    if not options.attack and not options.eps:
        idle = [*given, *(n for n, v in vars(options.budget).items() if v != vars(Budget())[n])]
        if idle or options.targeted:
            name = next(iter(idle), "targeted")
            raise UsageError(f"--{name} is for an attack: --attack pgd, or --eps 0.1")
        entries = []
    random = [e.name for e in entries if _starts_at_random(e, options, given)]
    found = []
    for path in options.runs:
        run = load_run(path, options.checkpoint)
        attacks = {}
        for entry in entries:
            budget = options.budget  # the restarts are those of the attacks that can be varied
            if random and entry.name not in random:
                budget = dataclasses.replace(budget, restarts=1)
            attacks.update(_attacks(entry, run, options, budget, given))
        found.append(_evaluate(run, options, given, attacks, console))
    console.result({"evaluations": found})


def _starts_at_random(entry: Entry, options: Options, given: Mapping[str, Any]) -> bool:
    once = dataclasses.replace(options.budget, restarts=1)
    return starts_at_random(make(entry, 0.1 if needs_radius(entry) else None, once, given))


def _attacks(
    entry: Entry, run: Run, options: Options, budget: Budget, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Name to attack, for every eps."""
    norm = norm_of(entry, budget)
    method = "-".join([entry.name.lower(), *([norm] if norm else [])])
    radii: tuple[float | None, ...] = options.eps if entry.norms else (None,)
    if not radii:
        radii = (run.eps(norm) if needs_radius(entry) else None,)
    named = {}
    for eps in radii:
        name = method if eps is None else f"{method} eps {eps:.4g}"
        named[name] = make(entry, eps, budget, given, targeted=options.targeted)
    return named


def _evaluate(
    run: Run,
    options: Options,
    given: Mapping[str, Any],
    attacks: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    import jax
    import numpy as np

    from advjax.cli.report import write
    from advjax.data import load
    from advjax.evaluation import evaluate

    trained_on = run.training.get("test") or run.training["train"]
    name = options.data or trained_on["name"]
    data_dir = options.data_dir or run.config.get("data_dir")
    data = load(name, options.split, data_dir)
    if data.x.shape[1:] != run.input_shape:
        raise UsageError(
            f"{name} has images {data.x.shape[1:]}; {run.folder} takes {run.input_shape}"
        )
    if options.examples is not None:
        data = data.subset(options.examples, options.seed)
    with console.progress(f"evaluating {run.folder}") as tell:
        found = evaluate(
            run.model,
            data,
            attacks,
            key=jax.random.key(options.seed),
            batch_size=min(options.batch_size, len(data)),
            keep_images=PICTURES,
            progress=lambda stage, done, total: tell(done, total, stage),
        )
    path = run.folder / "evaluations" / _file_name(options, given, bool(attacks))
    found.save(path)
    np.save(path.with_name(path.name + "-images.npy"), data.x[:PICTURES])
    report = write(run.folder)
    console.say(f"{run.folder}, {options.checkpoint} checkpoint, {len(data)} images of {data.name} "
                f"{data.split}")  # fmt: skip
    console.say(found.table())
    console.say(f"results {path}.json\nreport  {report}\n")
    return {
        "run": str(run.folder),
        "checkpoint": options.checkpoint,
        "results": f"{path}.json",
        "report": str(report),
        **found.summary(),
    }


def _file_name(options: Options, given: Mapping[str, Any], attacked: bool) -> str:
    """One name for one kind of evaluation: the same command again replaces its result."""
    budget = options.budget
    parts = [options.checkpoint, options.split]
    if attacked:
        parts += [*(options.attack or ("pgd",)), *([budget.norm] if budget.norm else [])]
        parts += [f"{eps:.4g}" for eps in options.eps]
        shown = {**given, **({"restarts": budget.restarts} if budget.restarts != 1 else {})}
        parts += [re.sub(r"[^\w.]+", "_", f"{value}{name}") for name, value in shown.items()]
        parts += ["targeted"] if options.targeted else []
    parts += [str(options.examples)] if options.examples is not None else []
    return "-".join(parts)
