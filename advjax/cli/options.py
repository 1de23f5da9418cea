"""Options that several commands share, and the attacks they describe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from advjax.cli.parsing import UsageError

if TYPE_CHECKING:
    from advjax.attacks import Attack

Method = Literal[
    "fgsm", "bim", "pgd", "mim", "apgd", "square", "fab", "deepfool", "ddn", "fmn", "autoattack"
]
# Attacks that set their own step, and what advjax calls them.
_STEPLESS = {
    "apgd": "APGD",
    "square": "Square",
    "fab": "FAB",
    "deepfool": "DeepFool",
    "ddn": "DDN",
    "fmn": "FMN",
    "autoattack": "AutoAttack",
}
Norm = Literal["linf", "l2", "l1"]
Which = Literal["best", "last"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How an attack may change an image and how hard it tries."""

    norm: Norm = "linf"
    """What eps measures: the largest change of a pixel (linf), Euclidean (l2) or summed (l1)."""
    steps: int | None = None
    """Steps. None: 40 for pgd, 10 for bim and mim, the published number for the others; fgsm has
    one, autoattack its own."""
    step_size: float | None = None
    """Length of a step. None: 2.5 eps / steps for pgd, eps / steps for bim, mim and fgsm; the
    others set their own."""
    restarts: int = 1
    """Tries from new random starts; an image that falls in one of them has fallen."""


def attack_of(method: str, eps: float, budget: Budget, *, targeted: bool = False) -> Attack:
    """The attack that the options describe.

    Args:
      method: one of ``Method``.
      eps: radius in ``budget.norm``, for images in [0, 1].
      targeted: aim at a random wrong class of every image.

    Raises:
      UsageError: for options that do not belong together.
      ValueError: for numbers out of range.
    """
    from advjax import attacks, balls

    ball: Any = {"linf": balls.Linf, "l2": balls.L2, "l1": balls.L1}[budget.norm](eps)
    fields: dict[str, Any] = {"ball": ball}
    if method in _STEPLESS:
        _check_stepless(method, budget, targeted)
    else:
        fields["step_size"] = budget.step_size
    if budget.steps is not None:
        if method == "fgsm":
            raise UsageError("fgsm is one step, --steps does not go with it; bim is fgsm repeated")
        fields["steps"] = budget.steps
    make: dict[str, Any] = {
        "fgsm": attacks.FGSM,
        "bim": attacks.BIM,
        "pgd": attacks.PGD,
        "mim": attacks.MIM,
        **{key: getattr(attacks, name) for key, name in _STEPLESS.items()},
    }
    attack = make[method](**fields)
    if budget.restarts != 1:
        if method != "pgd":
            raise UsageError(f"{method} has no random start that --restarts could vary; use pgd")
        attack = attacks.Restarts(attack=attack, n=budget.restarts)
    if targeted:
        attack = attacks.Targeted(attack=attack, choose=attacks.random_target)
    return attack


def _check_stepless(method: str, budget: Budget, targeted: bool) -> None:
    from advjax.attacks import registry

    known = registry.entry(_STEPLESS[method])
    if budget.norm not in known.norms:
        raise UsageError(f"{method} does not know the norm {budget.norm}; {', '.join(known.norms)}")
    if budget.step_size is not None:
        raise UsageError(f"{method} sets its own step, --step-size does not go with it")
    if method == "autoattack" and (targeted or budget.steps is not None):
        raise UsageError("autoattack is fixed: neither --steps nor a target goes with it")


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
