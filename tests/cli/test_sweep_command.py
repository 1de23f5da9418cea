"""``advjax sweep``: run, status, table, and what is told about bad input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from advjax.cli import main

EXPERIMENT = '''"""Numbers from numbers."""
import dataclasses
from pathlib import Path

from advjax.sweeps import choices


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float = 0.1
    scale: float = 1.0
    seed: int = 0
    data_dir: Path | None = None


grid = choices(eps=[0.1, 0.2], seed=range(2))


def main(config, run_dir):
    assert config.data_dir is None or isinstance(config.data_dir, Path)
    if config.eps == 0.2 and config.seed:
        raise FloatingPointError("the loss")
    return {"accuracy": config.scale * (1 - config.eps)}
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numbers.py").write_text(EXPERIMENT)
    return Path("numbers.py")


def test_a_search_is_run_grown_and_its_best_shown(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = "Search(dict(eps=uniform(0.0, 1.0)), trials=12, metric='accuracy')"
    text = EXPERIMENT.replace("choices(eps=[0.1, 0.2], seed=range(2))", search)
    file.write_text(text.replace("import choices", "import Search, uniform"))
    assert main(["sweep", str(file)]) == 0
    shown = capsys.readouterr()
    assert "12 of 12 cells to go" in shown.err
    assert "the best 10 of 12" in shown.out
    accuracies = [float(line.split()[1]) for line in shown.out.splitlines()[4:14]]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > 80
    assert main(["sweep", str(file), "--trials", "14"]) == 0
    assert "2 of 14 cells to go" in capsys.readouterr().err
    assert main(["sweep", "status", "sweeps/numbers"]) == 0
    assert "14 cells, 14 done" in capsys.readouterr().out
    assert main(["sweep", str(file), "--eps", "0.5"]) == 2
    assert "sets eps itself" in capsys.readouterr().err
    file.write_text(file.read_text().replace("'accuracy'", "'acuracy'"))
    assert main(["sweep", str(file), "--folder", "other"]) == 2
    assert "no cell has a metric acuracy; there are: accuracy" in capsys.readouterr().err


def test_more_trials_are_for_a_search(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(file), "--trials", "3"]) == 2
    assert "--trials is for a Search; numbers.py has a grid" in capsys.readouterr().err


def test_a_sweep_is_run_shown_and_written_out(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(file), "--scale", "0.5", "--data-dir", "here"]) == 0
    shown = capsys.readouterr()
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["0.1", "45.0", "+-", "0.0"] in lines and ["0.2", "40.0", "(1", "KO)"] in lines
    assert "1 x KO: diverged: the loss" in shown.out and "sweeps/numbers" in shown.out
    assert "4 of 4 cells to go" in shown.err and "3 done, 1 ko" in shown.err

    assert main(["sweep", "status", "sweeps/numbers"]) == 0
    assert "numbers.py: 4 cells, 3 done, 1 ko" in capsys.readouterr().out
    assert main(["sweep", "status", "sweeps/numbers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"done": 3, "ko": 1} and found["seconds_left"] is None

    table = ["sweep", "table", "sweeps/numbers", "--rows", "seed", "--columns", "eps"]
    assert main([*table, "--markdown", "--export", "cells.csv"]) == 0
    assert "| 1 | 45.0 | KO |" in capsys.readouterr().out
    with Path("cells.csv").open(newline="") as cells:
        rows = list(csv.DictReader(cells))
    assert len(rows) == 4 and rows[0]["data_dir"] == "here" and rows[3]["status"] == "ko"


def test_a_page_is_written_at_the_end_and_on_demand(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(file), "--folder", "s"]) == 0
    assert "page    s/index.html" in capsys.readouterr().out
    written = Path("s/index.html").read_text()
    assert "numbers.py" in written and "Numbers from numbers." in written
    Path("s/index.html").unlink()
    assert main(["sweep", "page", "s"]) == 0
    assert Path("s/index.html").read_text() == written
    assert main(["sweep", "page", "s", "--metric", "accuracy", "--out", "p.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"folder": "s", "page": "p.html"}
    assert Path("p.html").read_text() == written

    Path("s/index.html").unlink()
    Path("s/index.html").mkdir()  # what is in the way of the page does not undo the sweep
    assert main(["sweep", str(file), "--folder", "s"]) == 0
    shown = capsys.readouterr()
    assert not list(Path("s").glob("*.partial"))
    assert "no page:" in shown.err and "page  " not in shown.out and "sweep   s" in shown.out


def test_it_tells_itself_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(file), "--folder", "s", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [cell["status"] for cell in found["cells"]] == ["done", "done", "done", "ko"]
    assert found["page"] == "s/index.html"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["numbers.py", "--eps", "0.3"], "--eps: the grid of numbers.py sets eps itself"),
        (["numbers.py", "--epsilon", "0.3"], "unknown option --epsilon"),
        (["numbers.py", "--folder", "numbers.py"], "or it is a file"),
        (["--workers", "2"], "the experiment file comes first"),
        (["none.py"], "no experiment file"),
        (["numbers.py", "--executor", "here", "--workers", "2"], "--workers is not for --executor"),
        (["numbers.py", "--address", "auto"], "--address is not for --executor here"),
        (["numbers.py", "--executor", "ray", "--parameters", "gpus"], "expected NAME=VALUE"),
        (["numbers.py", "--executor", "ray", "--parameters", "cores=1"], "argument 'cores'"),
        (["status"], "no sweep given"),
        (["table", "nowhere"], "nowhere is no sweep: it has no sweep.jsonl"),
        (["page"], "no sweep given: advjax sweep page FOLDER"),
        (["page", "nowhere"], "nowhere is no sweep: it has no sweep.jsonl"),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *args]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and len(shown.splitlines()) == 1


def test_executors_are_named_and_without_their_package_one_line_says_so(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sweep", str(file), "--executor", "processes", "--workers", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cells"]
    # In this folder numbers.py is the experiment; a worker's Python needs its own module numbers.
    assert [cell["status"] for cell in found] == ["done", "done", "done", "ko"]
    for name, package in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["sweep", str(file), "--executor", name, "--workers", "2"]) == 2
        assert f"pip install 'advjax[{name}]'" in capsys.readouterr().err


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--help"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "status FOLDER",
        "table FOLDER",
        "page FOLDER",
        "--workers",
        "--retry",
        "goes on where",
    ):
        assert text in shown


def test_looking_at_a_sweep_loads_nothing_heavy(file: Path) -> None:
    assert main(["sweep", str(file), "--folder", "s", "--json"]) == 0
    code = (
        "import sys; from advjax.cli import main; main(['sweep', 'status', 's']); "
        "main(['sweep', 'table', 's']); main(['sweep', 'page', 's']); "
        "print([m for m in ('jax', 'flax') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
