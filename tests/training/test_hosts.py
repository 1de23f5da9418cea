"""Two processes over loopback train what one process trains; one that is killed ends the run."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from advjax.runs import hosts, read_rows
from advjax.runs.checkpoint import steps_in

HERE = Path(__file__).parent


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder, processes, seconds=0.0):
    port = free_port()
    env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parents[1])}
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "host_run.py"),
             *map(str, (folder, port, processes, i, seconds))],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


def end(running, within=180):
    """Return codes and what was printed; none is left behind."""
    try:
        said = [p.communicate(timeout=within) for p in running]
    finally:
        for p in running:
            p.kill()
    return [p.returncode for p in running], said


def wait_for_rows(folder, n, running):
    until = time.monotonic() + 120
    while len(read_rows(folder)) < n:
        assert all(p.poll() is None for p in running) and time.monotonic() < until
        time.sleep(0.02)


def weights(folder, processes, process):
    with np.load(folder / f"weights-{processes}-{process}.npz") as found:
        return [found[name] for name in found.files]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    codes, said = end(start(folder / "run", 1))
    assert codes == [0], said
    return folder


def compare(alone, folder):
    for process in range(2):
        for a, b in zip(weights(alone, 1, 0), weights(folder, 2, process), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    rows, others = read_rows(alone / "run"), read_rows(folder / "run")
    assert [(r["kind"], r["step"]) for r in rows] == [(r["kind"], r["step"]) for r in others]
    for row, other in zip(rows, others, strict=True):
        for name in row.keys() - {"kind", "seconds"}:
            assert row[name] == pytest.approx(other[name], abs=1e-4), (row["step"], name)


@pytest.mark.slow
def test_two_processes_train_what_one_does(alone, tmp_path):
    codes, said = end(start(tmp_path / "run", 2))
    assert codes == [0, 0], said
    best = [out.splitlines()[-1] for out, _ in said]
    assert best[0] == best[1] and "robust/fgsm" in best[0]
    compare(alone, tmp_path)


@pytest.mark.slow
def test_a_signal_to_one_of_them_stops_both_and_they_resume(alone, tmp_path):
    running = start(tmp_path / "run", 2, seconds=0.05)
    wait_for_rows(tmp_path / "run", 12, running)
    running[1].send_signal(signal.SIGTERM)
    codes, said = end(running)
    assert codes == [143, 143], said
    assert 12 <= steps_in(tmp_path / "run" / "checkpoints")[-1] < 60
    codes, said = end(start(tmp_path / "run", 2))
    assert codes == [0, 0], said
    compare(alone, tmp_path)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_it_resumes(alone, tmp_path):
    running = start(tmp_path / "run", 2, seconds=0.05)
    wait_for_rows(tmp_path / "run", 30, running)
    running[1].kill()
    codes, said = end(running)
    assert codes[0] != 0 and codes[1] == -signal.SIGKILL, said
    assert steps_in(tmp_path / "run" / "checkpoints")[-1] >= 20
    codes, said = end(start(tmp_path / "run", 2))
    assert codes == [0, 0], said
    compare(alone, tmp_path)


def test_another_run_in_the_folder_is_refused_by_both(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    codes, said = end(start(tmp_path / "run", 2))
    assert codes[0] and codes[1]
    assert all("no run folder and not empty" in err for _, err in said)


def test_half_an_address_is_told():
    with pytest.raises(ValueError, match="expected all three"):
        hosts.join("127.0.0.1:1234")
