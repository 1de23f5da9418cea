"""``advjax train FILE``: runs an experiment file."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from advjax.cli.console import Console
from advjax.cli.parsing import UsageError, parse
from advjax.experiment import SHAPE, Experiment, load_experiment
from advjax.report.text import ruled

PROG = "advjax train"
DESCRIPTION = f"""Runs an experiment file: advjax train FILE [--field value ...]

FILE comes first; {SHAPE}. Every field of Config is an option: advjax train FILE --help lists them.
The run is one folder. The same command on the same folder goes on where it was stopped; Ctrl-C and
SIGTERM save first.

examples:
  advjax train experiments/mnist_fast.py --data-dir tensorflow_datasets
  advjax train experiments/mnist_fast.py --epochs 3 --eps 0.2 --run runs/short"""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where the run goes and what it says; the same for every experiment."""

    run: Path | None = None
    """The run's folder. None: runs/ and the file's name."""
    overwrite: bool = False
    """Start again, deleting the run that the folder holds."""
    join: str | None = None
    """Train as one of several processes: ADDRESS:PORT,N,I of the first process, how many there are
    and which this is, from 0; auto under SLURM, Kubernetes and on TPU pods."""
    json: bool = False
    """Print one JSON object instead of a table."""


def main(args: Sequence[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        parse(RunOptions, ["--help"], prog=f"{PROG} FILE", description=DESCRIPTION)
    if args[0].startswith("-"):
        raise UsageError(f"the experiment file comes first: {PROG} FILE [--field value ...]")
    experiment = load_experiment(Path(args[0]))
    options, config = parse_beside(RunOptions, experiment, args, PROG)
    console = Console(options.json)
    folder = options.run or Path("runs") / experiment.path.stem
    if experiment.build is not None:
        _train(experiment, config, folder, options.overwrite, options.join, console)
    elif options.join is not None:
        raise UsageError("--join is for files with build; main trains in one process")
    else:
        _study(experiment, config, folder, console)


def parse_beside(
    own: type, experiment: Experiment, args: Sequence[str], prog: str
) -> tuple[Any, Any]:
    """The options of the command, ``own``, and the experiment's, side by side."""
    taken = {f.name for f in dataclasses.fields(own)}
    both = taken & {f.name for f in dataclasses.fields(experiment.config)}
    if both:
        raise UsageError(
            f"{experiment.path}: Config has a field {sorted(both)[0]}, an option of {prog} itself; "
            f"expected other names than {', '.join(sorted(taken))}"
        )
    plain: Any = tyro.conf.OmitArgPrefixes
    fields = [
        (name, plain[cls], dataclasses.field(default_factory=cls))
        for name, cls in (("command", own), ("config", experiment.config))
    ]
    options = dataclasses.make_dataclass("Options", fields, frozen=True)
    found: Any = parse(
        options, args[1:], prog=f"{prog} {experiment.path}", description=experiment.summary
    )
    return found.command, found.config


def _train(
    experiment: Experiment,
    config: Any,
    folder: Path,
    overwrite: bool,
    join: str | None,
    console: Console,
) -> None:
    from advjax.cli.report import write
    from advjax.cli.watch import watch
    from advjax.training import CheckpointError, RunError, Stopped, fit, hosts

    assert experiment.build is not None
    if join is not None:
        _join(join)
    training = experiment.build(config)
    began = time.monotonic()
    try:
        with watch(console) as progress:
            result = fit(
                training,
                folder,
                config=dataclasses.asdict(config),
                source=experiment.path,
                overwrite=overwrite,
                progress=progress,
            )
    except Stopped as stopped:
        console.note(f"advjax: {stopped}")
        raise
    except (RunError, CheckpointError) as error:
        raise UsageError(str(error)) from error
    if not hosts.is_coordinator():  # the first process has the folder, and reports
        return
    report = write(folder)
    judging = training.judging()
    found = {w: getattr(result, w).metrics for w in ("best", "last")}
    on = {
        prefix: {w: _accuracies(metrics, prefix, len(data)) for w, metrics in found.items()}
        for prefix, data in judging.items()
    }
    console.result(
        {
            "run": str(folder),
            "report": str(report),
            "resumed_finished": result.was_finished,
            "stopped": result.stopped,
            "seconds": time.monotonic() - began,
            **{
                which: {
                    "step": getattr(result, which).step,
                    **{
                        prefix + name: value.to_dict()
                        for prefix, rows in on.items()
                        for name, value in rows[which].items()
                    },
                }
                for which in found
            },
        }
    )
    if result.stopped is not None:
        console.say(f"stopped after step {result.last.step}: {result.stopped}")
    for prefix, data in judging.items():
        console.say(f"on {len(data)} examples of {data.name} {data.split}:")
        rows = on[prefix]
        console.say(_table({f"{w} (step {getattr(result, w).step})": rows[w] for w in rows}))
    console.say(f"run     {folder}")
    console.say(f"report  {report}")


def _join(where: str) -> None:
    """Makes this process one of several."""
    from advjax.training import hosts

    if where == "auto":
        hosts.join()
        return
    address, *numbers = where.split(",")
    if len(numbers) != 2 or not all(n.isdigit() for n in numbers) or ":" not in address:
        raise UsageError(f"--join {where}: expected ADDRESS:PORT,N,I or auto")
    hosts.join(address, int(numbers[0]), int(numbers[1]))


_ACCURACIES = ("clean", "worst", "robust/")


def _accuracies(metrics: Mapping[str, float], prefix: str, n: int) -> dict[str, Any]:
    """Name to ``Accuracy`` of what an evaluation found on one set, of ``n`` examples."""
    from advjax.evaluation import Accuracy

    return {
        name.removeprefix(prefix): Accuracy(round(value * n), n, 0.95)
        for name, value in metrics.items()
        if name.startswith(prefix) and name.removeprefix(prefix).startswith(_ACCURACIES)
    }


def _table(rows: dict[str, dict[str, Any]]) -> str:
    """One line per row, one column per accuracy, with 95 % intervals."""
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    cells = [
        [row, *(percent(found[name]) if name in found else "" for name in names)]
        for row, found in rows.items()
    ]
    return ruled(["", *names], cells)


def percent(accuracy: Any) -> str:
    """``97.60 [95.85, 98.62]``."""
    low, high = 100 * accuracy.low, 100 * accuracy.high
    return f"{100 * accuracy.value:.2f} [{low:.2f}, {high:.2f}]"


def _study(experiment: Experiment, config: Any, folder: Path, console: Console) -> None:
    """An experiment with several trainings: ``main`` does the work and returns the figures."""
    from advjax.cli.watch import watch
    from advjax.training import CheckpointError, RunError, Stopped

    assert experiment.main is not None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with watch(console) as progress:
            told = {"progress": progress} if experiment.takes_progress else {}
            found = experiment.main(config, folder, **told)
    except Stopped as stopped:
        console.note(f"advjax: {stopped}")
        raise
    except (RunError, CheckpointError) as error:
        raise UsageError(str(error)) from error
    text = found.pop("table", None)
    (folder / "result.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    console.result({"run": str(folder), **found})
    console.say(text if text is not None else json.dumps(found, indent=2))
    console.say(f"written to {folder / 'result.json'}")
