"""``advjax evaluate RUN...``: clean and robust accuracy of trained classifiers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from advjax.cli.console import Console
from advjax.cli.options import Budget, Method, Run, Which, attack_of, load_run
from advjax.cli.parsing import UsageError, parse

PROG = "advjax evaluate"
DESCRIPTION = """Measures the accuracy of a trained classifier on clean and on attacked images.

RUN is a run folder, or an experiment file FILE.py whose run is runs/FILE. An image counts as robust
if it is classified right both clean and attacked. Results go to RUN/evaluations and the report.

examples:
  advjax evaluate runs/mnist_fast --eps 0.3 --steps 50 --step-size 0.01 --restarts 10
  advjax evaluate runs/a runs/b --attack fgsm pgd --eps 2/255 4/255 8/255 --json"""

PICTURES = 12  # adversarial images kept for the report


@dataclasses.dataclass(frozen=True)
class Options:
    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")
    ] = ()
    """Run folders or experiment files."""
    attack: tuple[Method, ...] = ("pgd",)
    """Attacks, one or several."""
    eps: tuple[float, ...] = ()
    """Radii, one or several, for images in [0, 1], like 8/255. Without: clean accuracy alone."""
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
    checkpoint: Which = "best"
    """The checkpoint with the best robust accuracy while training, or the last one."""
    batch_size: int = 256
    """Images at a time; results do not depend on it."""
    seed: int = 0
    """Decides every random draw."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of tables."""


def main(args: Sequence[str]) -> None:
    options = parse(Options, args, prog=PROG, description=DESCRIPTION)
    if not options.runs:
        raise UsageError(f"no run given: {PROG} RUN ...")
    console = Console(options.json)
    attacks = _attacks(options)
    found = [_evaluate(load_run(path, options.checkpoint), options, attacks, console)
             for path in options.runs]  # fmt: skip
    console.result({"evaluations": found})


def _attacks(options: Options) -> dict[str, Any]:
    """Name to attack, for every method and eps."""
    named = {}
    for method in options.attack if options.eps else ():
        for eps in options.eps:
            budget = options.budget
            if method == "fgsm":  # one step, whatever the others make
                budget = dataclasses.replace(budget, steps=None, step_size=None)
            if method != "pgd":
                budget = dataclasses.replace(budget, restarts=1)
            name = f"{method}-{budget.norm} eps {eps:.4g}"
            named[name] = attack_of(method, eps, budget, targeted=options.targeted)
    return named


def _evaluate(
    run: Run, options: Options, attacks: dict[str, Any], console: Console
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
    path = run.folder / "evaluations" / _file_name(options)
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


def _file_name(options: Options) -> str:
    """One name for one kind of evaluation: the same command again replaces its result."""
    budget = options.budget
    parts = [options.checkpoint, options.split]
    if options.eps:
        parts += [*options.attack, budget.norm, *(f"{eps:.4g}" for eps in options.eps)]
        parts += [f"{budget.steps}steps"] if budget.steps is not None else []
        parts += [f"{budget.restarts}restarts"] if budget.restarts != 1 else []
        parts += ["targeted"] if options.targeted else []
    parts += [str(options.examples)] if options.examples is not None else []
    return "-".join(parts)
