"""Experiment files: a docstring, a frozen dataclass ``Config`` and ``build`` or ``main``."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

SHAPE = (
    "an experiment file has a docstring, a frozen dataclass Config whose fields all have defaults, "
    "and build(config) -> Training or main(config, run_dir) -> dict"
)


class ExperimentError(ValueError):
    """A file that is no experiment; one line that says what is missing."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A loaded experiment file.

    Attributes:
      path: the file.
      summary: the first paragraph of its docstring: the claim.
      config: its frozen dataclass ``Config``.
      build: ``build(config) -> Training``, or None.
      main: ``main(config, run_dir) -> dict`` of a study with several trainings, or None.
      grid: the ``Grid`` that ``advjax sweep`` runs, or ``grid(config) -> Grid``; or None.
    """

    path: Path
    summary: str
    config: type
    build: Callable[[Any], Any] | None
    main: Callable[..., dict[str, Any]] | None
    grid: Any = None

    @property
    def takes_progress(self) -> bool:
        """Whether ``main`` has a third argument, ``progress``, to pass on to ``fit``."""
        return self.main is not None and "progress" in inspect.signature(self.main).parameters


class _Source(importlib.machinery.SourceFileLoader):
    """Compiles the file as it is now. Python keeps bytecode by the file's size and its time in
    whole seconds, and so would run what stood there before a quick edit of one digit."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def load_experiment(path: Path) -> Experiment:
    """Imports the file and checks that it is an experiment.

    Raises:
      ExperimentError: if there is no such file, it does not import, or it lacks a part.
    """
    path = Path(path)
    if not path.is_file():
        raise ExperimentError(f"no experiment file {path}")
    name = f"advjax_experiment_{path.stem}"
    loader = _Source(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None or path.suffix != ".py":
        raise ExperimentError(f"{path} is no Python file; {SHAPE}")
    module = importlib.util.module_from_spec(spec)
    # Annotations of the dataclass are resolved through sys.modules.
    sys.modules[spec.name] = module
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ExperimentError(f"{path} does not import: {type(error).__name__}: {error}") from error
    config = getattr(module, "Config", None)
    build, main = getattr(module, "build", None), getattr(module, "main", None)
    missing = [
        name
        for name, there in (
            ("a docstring", bool(module.__doc__)),
            ("a frozen dataclass Config with defaults", _is_config(config)),
            ("build or main", callable(build) or callable(main)),
        )
        if not there
    ]
    if missing:
        raise ExperimentError(f"{path} lacks {' and '.join(missing)}; {SHAPE}")
    assert config is not None
    summary = (module.__doc__ or "").strip().split("\n\n")[0]
    return Experiment(path, summary, config, build, main, getattr(module, "grid", None))


def _is_config(config: Any) -> bool:
    return (
        isinstance(config, type)
        and dataclasses.is_dataclass(config)
        and config.__dataclass_params__.frozen  # type: ignore[attr-defined]
        and all(
            f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
            for f in dataclasses.fields(config)
            if f.init
        )
    )
