"""Cells on Ray and as jobs of submitit: the table is that of one process, whatever is killed.

Drivers are processes of their own: this one may not ask for addresses, not even its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_sweep import ONE_DEVICE, results

from advjax.sweeps import Ray, Slurm, Store
from advjax.sweeps.cell import Task, how_far
from advjax.sweeps.worker import Terms, run_task

ROOT = Path(__file__).parents[2]
RAY = pytest.param(
    "Ray(workers=2)",
    id="ray",
    marks=pytest.mark.skipif(
        find_spec("ray") is None, reason="needs ray: pip install 'advjax[ray]'"
    ),
)
LOCAL = pytest.param(
    "Slurm(2, cluster='local')",
    id="submitit",
    marks=pytest.mark.skipif(
        find_spec("submitit") is None, reason="needs submitit: pip install 'advjax[slurm]'"
    ),
)
SLURM = pytest.param("Slurm(2)", id="slurm", marks=LOCAL.marks)
FOUR = pytest.param("Ray(workers=4)", id="ray-4", marks=RAY.marks)

DRIVER = """
import sys
from advjax.sweeps import Here, Ray, Slurm, SweepError, cluster, sweep
cluster._LATE_S = 1.0
try:
    sweep(sys.argv[1], sys.argv[2], executor=eval(sys.argv[3]),
          progress=lambda told: told.text and print(told.text, file=sys.stderr, flush=True))
except SweepError as error:
    sys.exit(f"SweepError: {error}")
"""

# sbatch, srun, sacct and scancel of a cluster of one machine without limits.
FAKE = """#!{python}
import os, shutil, signal, subprocess, sys
from pathlib import Path

name, args, jobs = Path(sys.argv[0]).name, sys.argv[1:], Path(sys.argv[0]).parent / "jobs"
if name == "sbatch":
    job = str(1000 + len(list(jobs.glob("*.state"))))
    (jobs / f"{{job}}.state").write_text("RUNNING")
    script = shutil.copy(args[0], jobs / f"{{job}}.sh")  # submitit renames its file after this
    end = f"s=COMPLETED || s=FAILED; echo $s > {{jobs}}/{{job}}.state"
    run = subprocess.Popen(
        ["bash", "-c", f"bash {{script}} && {{end}}"], process_group=0,
        env={{**os.environ, "SLURM_JOB_ID": job}},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    (jobs / f"{{job}}.pid").write_text(str(run.pid))
    print("Submitted batch job", job)
elif name == "srun":
    job = os.environ["SLURM_JOB_ID"]
    for number, option in ((1, "--output"), (2, "--error")):
        path = args[args.index(option) + 1].replace("%j", job).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    command = args[args.index("--error") + 2 :]
    os.execvp(command[0], command)
elif name == "sacct":
    print("JobID|State|NodeList")
    for path in jobs.glob("*.state"):
        print(f"{{path.stem}}|{{path.read_text().strip()}}|here")
elif name == "scancel":
    if (jobs / f"{{args[0]}}.state").read_text() == "RUNNING":
        os.killpg(int((jobs / f"{{args[0]}}.pid").read_text()), signal.SIGTERM)
"""


@pytest.fixture(autouse=True)
def fake_slurm(tmp_path, monkeypatch):
    commands = tmp_path / "slurm"
    (commands / "jobs").mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct", "scancel"):
        (commands / name).write_text(FAKE.format(python=sys.executable))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(autouse=True)
def no_driver_left():
    yield
    for process in Driver.started:
        process.kill()
        process.wait()
    Driver.started.clear()


class Driver:
    """A sweep in a process of its own, and all that it has started."""

    started: list[subprocess.Popen[bytes]] = []

    def __init__(self, experiment, folder, executor):
        self.folder, self.log = folder, Path(f"{folder}.log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(experiment), str(folder), executor],
                env={**os.environ, **ONE_DEVICE, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        self.started.append(self.process)
        self.family = {}

    def wait(self, until=lambda: False, seconds=240):
        """Until it has ended, or this holds; its exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and not until():
            assert time.monotonic() < end, self.log.read_text()
            self.family |= descendants(self.process.pid)
            time.sleep(0.1)
        return self.process.returncode

    def left(self, seconds=30):
        """Command lines of what it started that still runs after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            left = [line for who, line in self.family.items() if who in processes()]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.1)


def processes():
    """Process id and start time of all processes to their parents' ids."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(path.name), fields[19]] = int(fields[1])
    return found


def descendants(pid):
    parents, found, front = processes(), {}, {pid}
    while front:
        front = {who for who, parent in parents.items() if parent in front}
        for who in front:
            with contextlib.suppress(OSError):
                found[who] = Path(f"/proc/{who[0]}/cmdline").read_text().replace("\0", " ")
        front = {who[0] for who in front}
    return found


def holder(cell):
    """The process that runs this cell, or None."""
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(path) == str(cell / ".lock"):
                return int(path.parts[2])
    return None


def cells_of(folder):
    with Store(folder) as store:
        return store.cells()


def here(experiment, folder):
    driver = Driver(experiment, folder, "Here()")
    assert driver.wait() == 0, driver.log.read_text()
    return cells_of(folder)


def long(digits, save_every):
    """Makes the digits' cells take seconds."""
    digits.write_text(
        digits.read_text()
        .replace("lr=[0.01, 1e30]", "lr=[0.01, 0.02]")
        .replace("seed=[0, 1]", "seed=[0]")
        .replace("steps: int = 30", "steps: int = 2000")
        .replace("evaluate_every=10", "evaluate_every=500")
        .replace("log_every=5", f"log_every=1, checkpoint_every_s={save_every}")
    )


@pytest.mark.parametrize("executor", [RAY, FOUR, LOCAL, SLURM])
def test_the_table_is_that_of_one_process(executor, synthetic, digits, tmp_path):
    for experiment in (synthetic, digits):
        calm = here(experiment, tmp_path / f"{experiment.stem}-here")
        driver = Driver(experiment, tmp_path / experiment.stem, executor)
        assert driver.wait() == 0, driver.log.read_text()
        assert driver.left() == []
        cells = cells_of(driver.folder)
        assert results(cells) == results(calm)
        assert "its worker ended" not in driver.log.read_text()
        assert not (driver.folder / "workers" / "driver").exists()
    assert [c.status for c in cells] == ["done", "done", "ko", "ko"]
    if "Slurm" in executor:
        assert len(list((driver.folder / "workers").glob("*_log.err"))) == 4


@pytest.mark.parametrize("executor", [RAY, LOCAL, SLURM])
def test_a_killed_worker_costs_only_its_cells_progress(executor, digits, tmp_path):
    long(digits, 0.05)
    calm = here(digits, tmp_path / "calm")
    driver = Driver(digits, tmp_path / "s", executor)
    killed = tmp_path / "s" / "cells" / calm[0].name
    assert driver.wait(lambda: how_far(killed) > 100) is None, driver.log.read_text()
    os.kill(holder(killed), signal.SIGKILL)
    assert driver.wait() == 0, driver.log.read_text()
    assert driver.left() == []
    assert driver.log.read_text().count("its worker ended") == 1
    cells = cells_of(driver.folder)
    assert results(cells) == results(calm)
    with Store(driver.folder) as store:
        for cell in cells:
            steps = [r["step"] for r in store.history(cell.name) if r["kind"] == "train"]
            assert steps == list(range(1, 2001))  # none lost, none doubled


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("executor", [RAY, LOCAL, SLURM])
def test_a_driver_that_ends_leaves_nothing_running(executor, number, digits, tmp_path):
    long(digits, 1000 if number == signal.SIGTERM else 0.05)
    digits.write_text(digits.read_text().replace("2000", "2_000_000"))
    driver = Driver(digits, tmp_path / "s", executor)

    def running():
        rows = list(driver.folder.glob("cells/*/run/metrics.jsonl"))
        return len(rows) == 2 and all(path.stat().st_size > 10_000 for path in rows)

    assert driver.wait(running) is None, driver.log.read_text()
    cells = list(driver.folder.glob("cells/*"))
    driver.family |= {who: "a cell" for who in processes() if who[0] in map(holder, cells)}
    driver.process.send_signal(number)
    assert driver.wait() == (143 if number == signal.SIGTERM else -number)
    if number == signal.SIGKILL and "Slurm" in executor:
        # Jobs outlive it, and end when the next driver is there.
        (driver.folder / "workers" / "driver").write_text("another")
    # Some helpers of a Ray whose driver was killed look for it only now and then.
    mine = "Agent" if number == signal.SIGKILL else "nothing"
    assert [line for line in driver.left() if mine not in line] == []
    assert all(how_far(cell) > 0 for cell in cells)
    if number == signal.SIGTERM:
        assert [c.status for c in cells_of(driver.folder)] == ["waiting"] * 2


WRONG = {
    "no space": (
        'import errno; raise OSError(errno.ENOSPC, "No space left on device")',
        "No space left on device; what is finished is kept",
    ),
    "no folder": (
        '(run_dir.parents[2] / "workers" / "driver").unlink()',
        "does not see the sweep's folder",
    ),
}


@pytest.mark.parametrize("executor", [RAY, LOCAL])
@pytest.mark.parametrize("wrong", list(WRONG))
def test_what_makes_a_sweep_pointless_ends_it(executor, wrong, synthetic, tmp_path):
    code, message = WRONG[wrong]
    synthetic.write_text(synthetic.read_text().replace("time.sleep(config.sleep)", code))
    driver = Driver(synthetic, tmp_path / "s", executor.replace("2", "1"))
    assert driver.wait() == 1 and driver.left() == []
    assert message in driver.log.read_text().splitlines()[-1]
    assert all(c.status in ("waiting", "done") for c in cells_of(driver.folder))


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        pytest.param("Ray(gpus=1000)", "no room for a cell of", marks=RAY.marks),
        pytest.param("Ray('127.0.0.1:1')", "no Ray at 127.0.0.1:1: ", marks=RAY.marks),
        pytest.param("Slurm(slurm_partitoin='x')", "ValueError: NameError: ", marks=LOCAL.marks),
    ],
)
def test_a_cluster_that_cannot_do_it_is_told(executor, message, synthetic, tmp_path):
    driver = Driver(synthetic, tmp_path / "s", executor)
    assert driver.wait() == 1 and driver.left() == []
    assert message in driver.log.read_text().splitlines()[-1]


def test_bad_input_and_missing_packages_are_told(monkeypatch):
    for wrong in (lambda: Ray(workers=0), lambda: Slurm(0), lambda: Ray(cpus=0)):
        with pytest.raises(ValueError, match="=0.*expected"):
            wrong()
    with pytest.raises(ValueError, match="cluster='cloud'; expected 'slurm' or 'local'"):
        Slurm(cluster="cloud")
    for name in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"Ray needs ray: pip install 'advjax\[ray\]'"):
        Ray()
    with pytest.raises(ValueError, match=r"Slurm needs submitit: pip install 'advjax\[slurm\]'"):
        Slurm()


def test_a_worker_looks_before_it_runs_a_cell(synthetic, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    task = Task("x", str(synthetic), {"lr": 0.5, "kind": "good", "seed": 0}, f"{folder}/cells/x")
    terms = Terms.of(task, "mine")
    assert "does not see the sweep's folder" in run_task(task, terms)["error"]
    assert not folder.exists()
    (folder / "workers").mkdir(parents=True)
    (folder / "workers" / "driver").write_text("mine")
    assert "or sees another; it must be" in run_task(task, Terms.of(task, "theirs"))["error"]
    other = dataclasses.replace(terms, packages={**terms.packages, "jax": "0.1"})
    assert ", the driver 0.1; equal ones are needed" in run_task(task, other)["error"]
    synthetic.write_text(synthetic.read_text() + "\n# changed\n")
    assert "sees another version of" in run_task(task, terms)["error"]
    synthetic.rename(tmp_path / "gone.py")
    assert "does not see" in run_task(task, terms)["error"]
    (tmp_path / "gone.py").rename(synthetic)
    assert not (folder / "cells").exists()

    terms = Terms.of(task, "mine")
    monkeypatch.setattr("advjax.sweeps.cell._PATIENCE_S", 0.0)
    (folder / "cells" / "x").mkdir(parents=True)
    with (folder / "cells" / "x" / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is held by another process" in run_task(task, terms)["lost"]
    assert run_task(task, terms)["metrics"]["accuracy"] == 0.5
