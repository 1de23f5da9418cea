"""Experiment files are checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from advjax.experiment import ExperimentError, load_experiment

GOOD = '''"""One claim,
told in two lines.

Source: a paper.
"""
from __future__ import annotations
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    eps: float = 0.3

def build(config):
    return config
'''


def written(folder: Path, text: str) -> Path:
    path = folder / "claim.py"
    path.write_text(text)
    return path


def test_a_file_with_its_three_parts_is_taken(tmp_path: Path) -> None:
    experiment = load_experiment(written(tmp_path, GOOD))
    assert experiment.summary == "One claim,\ntold in two lines."
    assert experiment.config().eps == 0.3
    assert experiment.build is not None and experiment.main is None


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        (lambda text: text.replace('"""', "#", 1).replace('"""', "#").replace("told", "#")
         .replace("Source", "#"), "docstring"),
        (lambda text: text.replace("class Config", "class Other"), "Config"),
        (lambda text: text.replace("(frozen=True)", ""), "frozen"),
        (lambda text: text.replace(" = 0.3", ""), "defaults"),
        (lambda text: text.replace("def build", "def other"), "build or main"),
    ],
)  # fmt: skip
def test_a_missing_part_is_named(tmp_path: Path, change, lacks: str) -> None:
    with pytest.raises(ExperimentError, match=f"lacks .*{lacks}.*an experiment file has"):
        load_experiment(written(tmp_path, change(GOOD)))


def test_files_that_are_not_there_or_do_not_import_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no experiment file"):
        load_experiment(tmp_path / "none.py")
    with pytest.raises(ExperimentError, match="does not import: NameError"):
        load_experiment(written(tmp_path, GOOD + "\nundefined\n"))
    with pytest.raises(ExperimentError, match="is no Python file"):
        (tmp_path / "notes.txt").write_text("x")
        load_experiment(tmp_path / "notes.txt")
