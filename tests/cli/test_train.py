"""``advjax train``: options from the Config, a run folder, resuming, studies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advjax.cli import main


def test_a_run_explains_itself(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "versions.json", "metrics.jsonl", "events", "checkpoints"} <= names
    assert {"experiment.py", "report.html"} <= names
    assert json.loads((run / "config.json").read_text())["config"]["epochs"] == 2


def test_help_shows_the_claim_and_every_field(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(experiment), "--help"]) == 0
    shown = capsys.readouterr().out
    for text in ("A small network learns digits.", "--epochs", "Passes over", "--lr", "0.003"):
        assert text in shown
    for text in ("--run", "--overwrite", "--json"):
        assert text in shown
    assert "second paragraph" not in shown


def test_the_same_command_again_finds_the_run_finished_and_tells_it_as_json(
    experiment: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(experiment), "--run", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["resumed_finished"] is True and found["last"]["step"] == 40
    for which in ("best", "last"):
        accuracy = found[which]["robust/fgsm"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        assert accuracy["total"] == 64
    assert "resumed after step 40" in err


def test_the_table_has_best_and_last_with_intervals(
    experiment: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(experiment), "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "best (step" in out and "last (step 40)" in out and "robust/fgsm" in out and "[" in out
    assert str(run / "report.html") in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--epoch", "3"], "unknown option --epoch; near ones: --epochs"),
        (["--epochs", "x"], "--epochs"),
        (["--lr", "1/0"], "fraction such as 8/255"),
        (["--epochs", "0"], "epochs=0; expected a whole number of at least 1"),
        (["--data", "digitz"], "digits"),
    ],
)
def test_wrong_values_are_refused_before_anything_runs(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    folder = tmp_path / "run"
    assert main(["train", str(experiment), "--run", str(folder), *args]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("advjax: error: ") and said in line
    assert not folder.exists()


def test_another_config_on_the_same_folder_is_refused(
    experiment: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(experiment), "--run", str(run), "--width", "16"]) == 2
    assert "width" in capsys.readouterr().err


def test_a_config_may_not_take_the_names_of_the_command(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clash.py"
    path.write_text(
        experiment.read_text().replace("    width: int", "    run: int = 1\n    width: int")
    )
    assert main(["train", str(path)]) == 2
    assert "Config has a field run" in capsys.readouterr().err


def test_divergence_is_a_failure_that_names_step_and_metric(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", str(experiment), "--run", str(folder), "--lr", "1e30"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("advjax: error: DivergedError: step ")


STUDY = '''"""A study of two numbers."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    n: int = 2


def main(config, run_dir):
    return {"rows": [config.n], "table": f"n is {config.n}"}
'''


def test_a_study_prints_its_table_and_keeps_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "study.py", tmp_path / "run"
    path.write_text(STUDY)
    assert main(["train", str(path), "--run", str(folder), "--n", "3"]) == 0
    assert "n is 3" in capsys.readouterr().out
    assert json.loads((folder / "result.json").read_text()) == {"rows": [3]}
    assert main(["train", str(path), "--run", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": str(folder), "rows": [2]}


def test_sigterm_saves_exits_with_143_and_the_same_command_goes_on(
    experiment: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "advjax",
        "train",
        str(experiment),
        "--run",
        str(tmp_path / "r"),
    ]
    command += ["--epochs", "5000"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "HOME": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    metrics = tmp_path / "r" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the same command again goes on from there" in err
    assert any((tmp_path / "r" / "checkpoints").iterdir())


@pytest.mark.parametrize("where", ["here", "127.0.0.1,2,0", "127.0.0.1:99,2", "127.0.0.1:99,a,0"])
def test_a_bad_address_to_join_is_told(
    where: str, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(experiment), "--run", str(tmp_path / "r"), "--join", where]) == 2
    assert f"--join {where}: expected ADDRESS:PORT,N,I or auto" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
