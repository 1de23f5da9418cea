"""A run that is killed or stopped and started again ends where an undisturbed one does."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from advjax.runs import read_rows
from advjax.runs.checkpoint import steps_in

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOTAL = 120


def start(run_dir, seconds=0.02):
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(run_dir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, str(HERE / "digits_run.py"), str(run_dir), str(seconds)],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_step(process, run_dir, step):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        rows = read_rows(run_dir)
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached")


def leaves(result):
    return [np.asarray(v) for v in jax.tree.leaves((result.last.model, result.best.model))]


@pytest.mark.slow
def test_killed_and_stopped_runs_end_bit_identical_to_an_undisturbed_one(tmp_path):
    from digits_run import run

    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"
    draw = random.Random()  # other moments every time; the outcome may not depend on them
    targets = sorted(draw.sample(range(8, 100), 3))
    for step in targets[:2]:
        process = start(disturbed)
        wait_for_step(process, disturbed, step)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()

    process = start(disturbed)
    wait_for_step(process, disturbed, targets[2])
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM, process.stderr.read()
    process.stderr.close()
    # What SIGTERM saved is the very step it stopped at.
    assert steps_in(disturbed / "checkpoints")[-1] == read_rows(disturbed)[-1]["step"]

    ended, undisturbed = run(disturbed), run(calm)
    for a, b in zip(leaves(ended), leaves(undisturbed), strict=True):
        assert a.tobytes() == b.tobytes(), f"kills at {targets}"
    assert (ended.best.step, ended.best.metrics) == (
        undisturbed.best.step, undisturbed.best.metrics,
    )  # fmt: skip

    rows = {name: read_rows(folder) for name, folder in (("d", disturbed), ("c", calm))}
    train = [r["step"] for r in rows["d"] if r["kind"] == "train"]
    assert train == list(range(1, TOTAL + 1))
    content = lambda row: {n: v for n, v in row.items() if n != "seconds"}
    assert list(map(content, rows["d"])) == list(map(content, rows["c"]))
