"""Help, versions, exit codes and one-line errors."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from advjax.cli import COMMANDS, main

HEAVY = ("jax", "flax", "optax", "orbax", "tensorflow_datasets", "sklearn", "numpy", "rich", "PIL")


def error_of(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """The one line that a failing command says."""
    assert main(args) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("advjax: error: ")
    return line


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help_answers_at_once_and_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from advjax.cli import main; code = main(sys.argv[1:]); "
        f"heavy = [m for m in {HEAVY} if m in sys.modules]; "
        "print('loaded', heavy, file=sys.stderr); sys.exit(code)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "loaded []"
    assert "usage: advjax" in done.stdout and "example" in done.stdout
    assert seconds < 5, "a busy machine is slow, but JAX alone would take longer"


def test_help_tells_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    assert "Exit codes" in shown


def test_no_command_shows_the_help_and_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: advjax" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import advjax

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"advjax {advjax.__version__}\n"


def test_python_m_advjax_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "advjax", "fly"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("advjax: error: no command fly; taken: demo, train")


def test_unknown_commands_and_options_are_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no command fly" in error_of(capsys, "fly")
    assert "near ones: --seed" in error_of(capsys, "demo", "--sed", "3")
    assert "no run given" in error_of(capsys, "evaluate")
    assert "no image given" in error_of(capsys, "predict")
    assert "no image given" in error_of(capsys, "attack")
    assert "comes first" in error_of(capsys, "train", "--run", "x")


def test_failures_of_the_work_are_1_and_interrupts_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import advjax.cli.report as report

    def fail(error: BaseException) -> None:
        def raising(args: object) -> None:
            raise error

        monkeypatch.setattr(report, "main", raising)

    fail(RuntimeError("the disk\nis gone"))
    assert "RuntimeError: the disk is gone" in error_of(capsys, "report", code=1)
    fail(ValueError("eps: given -1"))
    assert error_of(capsys, "report") == "advjax: error: eps: given -1"
    fail(KeyboardInterrupt())
    assert main(["report"]) == 130
    fail(SystemExit(143))
    assert main(["report"]) == 143


def test_traceback_shows_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from advjax.cli.parsing import UsageError

    with pytest.raises(UsageError, match="no run"):
        main(["report", "--traceback", "nowhere"])
    monkeypatch.setenv("ADVJAX_TRACEBACK", "1")
    with pytest.raises(UsageError, match="no run"):
        main(["report", "nowhere"])


def test_reporting_no_run_says_what_is_taken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no config.json" in error_of(capsys, "report", str(tmp_path))
