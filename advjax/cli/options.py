"""Options that several commands share, and the trained run that they name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from advjax.cli.parsing import UsageError


@dataclasses.dataclass(frozen=True)
class Output:
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of text."""


@dataclasses.dataclass(frozen=True)
class Trained(Output):
    checkpoint: Literal["best", "last"] = "best"
    """The checkpoint with the best robust accuracy while training, or the last one."""


@dataclasses.dataclass(frozen=True)
class Images(Trained):
    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE [IMAGE ...]")
    ] = ()
    """PNG or JPEG files."""
    run: Path | None = None
    """The run folder (required), or an experiment file whose run is runs/FILE."""

    def load(self, prog: str) -> Run:
        """The run, after checking that the images are there.

        Raises:
          UsageError: if an image or the run is missing.
        """
        if not self.images:
            raise UsageError(f"no image given: {prog} IMAGE ... --run RUN")
        if self.run is None:
            raise UsageError(f"no run given: {prog} IMAGE ... --run RUN")
        for path in self.images:
            if not path.is_file():
                raise UsageError(f"no image {path}")
        return load_run(self.run, self.checkpoint)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained classifier with what its run folder says of it.

    Attributes:
      folder: the run folder.
      model: the classifier of one checkpoint.
      input_shape: of one image, ``(H, W, C)``.
      classes: names of the classes.
      training: what was trained, from ``config.json``.
      config: the experiment's settings, from ``config.json``.
    """

    folder: Path
    model: Any
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    training: dict[str, Any]
    config: dict[str, Any]

    def class_name(self, index: int) -> str:
        """``7``, or ``3 (cat)`` where the class has a name of its own."""
        name = self.classes[index] if 0 <= index < len(self.classes) else str(index)
        return name if name == str(index) else f"{index} ({name})"

    def eps(self, norm: str | None) -> float:
        """The radius, in this norm, of the attack that the training was evaluated with.

        Raises:
          UsageError: if there is none.
        """
        radii = [
            eps for attack in self.training["attacks"].values() for eps in _radii(attack, norm)
        ]
        if not radii:
            raise UsageError(f"no radius given: --eps; {self.folder} was not attacked in {norm}")
        return radii[0]

    def class_index(self, text: str) -> int:
        """The class of that name or number.

        Raises:
          UsageError: if there is none.
        """
        if text in self.classes:
            return self.classes.index(text)
        if text.isdigit() and int(text) < len(self.classes):
            return int(text)
        raise UsageError(
            f"no class {text!r}; taken: 0 to {len(self.classes) - 1} or {', '.join(self.classes)}"
        )


def _radii(spec: Any, norm: str | None) -> list[float]:
    """The eps of every ball of a norm in the spec of an attack."""
    if isinstance(spec, list):
        return [eps for part in spec for eps in _radii(part, norm)]
    if not isinstance(spec, dict):
        return []
    if str(spec.get("is")).rpartition(".")[2].lower() == norm and isinstance(spec["eps"], float):
        return [spec["eps"]]
    return [eps for part in spec.values() for eps in _radii(part, norm)]


def load_run(path: Path, which: str) -> Run:
    """The classifier of a run.

    Args:
      path: the run folder, or an experiment file whose run is ``runs/NAME``.
      which: ``best`` or ``last``.

    Raises:
      UsageError: if the folder is no run or has no good checkpoint.
    """
    from advjax.training import CheckpointError, RunError, load_classifier, read_config

    folder = Path("runs") / path.stem if path.suffix == ".py" else path
    try:
        said = read_config(folder)
        model = load_classifier(folder, which, module=_own_module(folder, said))
    except (CheckpointError, RunError) as error:
        raise UsageError(str(error)) from error
    training = said["training"]
    return Run(
        folder=folder,
        model=model,
        input_shape=tuple(training["input_shape"]),
        classes=tuple(training["classes"]),
        training=training,
        config=said.get("config") or {},
    )


def _own_module(folder: Path, said: dict[str, Any]) -> Any:
    """The network of an experiment that brings its own, built by the run's copy of the file."""
    from advjax.experiment import load_experiment

    source = folder / "experiment.py"
    if "foreign" not in said["training"]["network"] or not source.is_file():
        return None
    experiment = load_experiment(source)
    if experiment.build is None:
        return None
    names = {f.name for f in dataclasses.fields(experiment.config)}
    given = {k: v for k, v in (said.get("config") or {}).items() if k in names}
    return experiment.build(experiment.config(**given)).module
