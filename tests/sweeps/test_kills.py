"""Workers and drivers killed at random moments: the table is that of an undisturbed sweep."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_sweep import ONE_DEVICE, results

from advjax.sweeps import Processes, Store, SweepError, choices, sweep

ROOT = Path(__file__).parents[2]

CELL = '''"""A cell that takes its time and is let in alone."""
import dataclasses, fcntl, os, time


@dataclasses.dataclass(frozen=True)
class Config:
    a: int = 0
    b: float = 0.0


def main(config, run_dir):
    # Nobody else may be in here now.
    with (run_dir / "held").open("a") as held, (run_dir / "log").open("a") as log:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(float(os.environ.get("CELL_SECONDS", 0)))
        log.write(f"{os.getpid()} ends\\n")
    return {"value": config.a * 10 + config.b}
'''


@pytest.mark.slow
def test_twenty_killed_workers_change_nothing(tmp_path):
    path = tmp_path / "counting.py"
    path.write_text(CELL)
    grid = choices(a=range(10), b=[0.0, 0.25, 0.5, 0.75, 1.0])
    calm = sweep(path, tmp_path / "calm", grid=grid)
    draw, stop, killed = random.Random(), threading.Event(), []
    # Long enough for twenty kills, and short enough for most cells to survive them.
    executor = Processes(3, environment={"CELL_SECONDS": "0.2"})

    def kill():
        while len(killed) < 20 and not stop.wait(draw.uniform(0.05, 0.35)):
            log = list((tmp_path / "disturbed").glob("cells/*/run/held"))
            pids = executor.pids()
            if log and pids:
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(draw.choice(pids), signal.SIGKILL)
                    killed.append(None)

    killer = threading.Thread(target=kill)
    killer.start()
    told = []
    folder = tmp_path / "disturbed"
    cells = sweep(path, folder, grid=grid, executor=executor, progress=told.append)
    stop.set()
    killer.join()
    assert len(killed) == 20 and any("SIGKILL" in t.text for t in told)
    assert results(cells) == results(calm) and len(cells) == 50
    for cell in cells:
        log = (folder / "cells" / cell.name / "run" / "log").read_text().splitlines()
        assert 1 <= len(log) <= 2  # twice where it was killed between its end and its answer


def start(experiment, folder):
    code = (
        "import sys; from advjax.sweeps import Processes, sweep; "
        "sweep(sys.argv[1], sys.argv[2], executor=Processes(2))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(experiment), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **ONE_DEVICE},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_driver_goes_on_and_half_done_cells_resume(digits, tmp_path):
    digits.write_text(
        digits.read_text()
        .replace("lr=[0.01, 1e30]", "lr=[0.01, 0.02]")
        .replace("steps: int = 30", "steps: int = 600")
        .replace("log_every=5", "log_every=1, checkpoint_every_s=0.05")
    )
    folder = tmp_path / "s"
    for _ in range(2):
        process = start(digits, folder)
        before = len(list(folder.glob("cells/*/run/checkpoints/*0")))
        until = time.monotonic() + 120
        while time.monotonic() < until:
            assert process.poll() is None, process.stderr.read()
            if len(list(folder.glob("cells/*/run/checkpoints/*0"))) > before + 2:
                break
            time.sleep(0.02)
        process.kill()
        process.wait()
        process.stderr.close()
    calm = sweep(digits, tmp_path / "calm", executor=Processes(2, environment=ONE_DEVICE))
    cells = sweep(digits, folder, executor=Processes(2, environment=ONE_DEVICE))
    assert [c.status for c in cells] == ["done"] * 4
    assert results(cells) == results(calm)
    with Store(folder) as store:
        for cell in cells:
            steps = [r["step"] for r in store.history(cell.name) if r["kind"] == "train"]
            assert steps == list(range(1, 601))  # none lost, none doubled


def full_disk(tmp_path):
    """A file system of 8 MB, or a loud skip where one cannot be made."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"needs the right to mount a small file system: {made.stderr.decode()}")
    return folder


@pytest.mark.parametrize("executor", [None, Processes(1)], ids=["here", "processes"])
def test_a_full_disk_ends_the_sweep_and_loses_nothing(synthetic, tmp_path, executor):
    small = full_disk(tmp_path)
    try:
        folder = small / "s"
        first = sweep(synthetic, folder, grid=choices(seed=range(3)))
        filler = os.open(small / "filler", os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            while True:
                os.write(filler, b"x" * 4096)
        os.close(filler)
        with pytest.raises(SweepError, match=r"full|No space left"):
            sweep(synthetic, folder, grid=choices(seed=range(200)), executor=executor)
        (small / "filler").unlink()
        cells = sweep(synthetic, folder, grid=choices(seed=range(6)))
        assert [c.status for c in cells] == ["done"] * 6
        assert results(cells)[:3] == results(first)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_folder_that_cannot_be_written_to_is_told(synthetic, tmp_path):
    folder = tmp_path / "s"
    cells = sweep(synthetic, folder)
    made = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"needs the right to mount: {made.stderr.decode()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        with pytest.raises(SweepError, match="Read-only file system"):
            sweep(synthetic, folder)
        with Store(folder) as store:
            assert results(store.cells()) == results(cells)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
