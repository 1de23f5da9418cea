"""A run knows a state, not what it means: what is no classifier trains, resumes, stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from autoencoder import Autoencoder, run

from advjax.runs import (
    DivergedError,
    Drop,
    RunError,
    StopWhen,
    read_config,
    read_rows,
    train,
)

HERE = Path(__file__).parent


def weights(result):
    leaves = jax.tree.leaves((result.last.model, result.best.model))
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def content(rows):
    return [{n: v for n, v in row.items() if n != "seconds"} for row in rows]


def test_it_trains_and_its_folder_explains_itself(tmp_path):
    result = run(tmp_path / "run")
    rows = [r for r in result.history if r["kind"] == "evaluation"]
    losses = [r["loss"] for r in rows]
    assert [r["step"] for r in rows] == list(range(10, 101, 10)) and losses[-1] < losses[0] / 2
    assert [r["step"] for r in result.history if r["kind"] == "train"] == list(range(1, 101))
    assert result.best.step == rows[int(np.argmin(losses))]["step"]
    assert result.best.score == -min(losses)
    assert tuple(read_rows(tmp_path / "run")) == result.history
    assert read_config(tmp_path / "run")["training"]["width"] == 8
    again = run(tmp_path / "run")
    assert again.was_finished and weights(again) == weights(result)
    with pytest.raises(RunError, match="width: the run has 8, given 4"):
        run(tmp_path / "run", width=4)


def test_killed_it_resumes_to_the_same_bits(tmp_path):
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "autoencoder.py"), str(folder), "0.03"],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 90
        while not (read_rows(folder) and read_rows(folder)[-1]["step"] >= 40):
            assert process.poll() is None and time.monotonic() < until, process.stderr.read()
            time.sleep(0.02)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    events = []
    resumed = train(Autoencoder(), folder, progress=events.append)
    assert any(e.text.startswith("resumed after step") for e in events if e.kind == "note")
    calm = run(tmp_path / "calm")
    assert weights(resumed) == weights(calm)
    assert content(read_rows(folder)) == content(read_rows(tmp_path / "calm"))


def back(steps=30):
    """Learns, then unlearns."""
    return optax.sgd(lambda step: jnp.where(step < steps, 1.0, -1.0))


def test_patience_stops_it_and_it_stays_stopped(tmp_path):
    fields = dict(optimizer=back(), patience=2)
    result = run(tmp_path / "run", **fields)
    assert result.best.step == 30 and result.last.step == 50
    loss = result.best.metrics["loss"]
    assert result.stopped == (f"early stopping: no better evaluation since step 30 ({-loss:.6g})")
    again = run(tmp_path / "run", **fields)
    assert again.was_finished and again.stopped == result.stopped
    assert weights(again) == weights(result)


def test_watchers_go_together_and_remember(tmp_path):
    looks = []

    def measure(view):
        looks.append(view.step)
        return 0.9 if view.step < 45 else 0.2

    def watchers(until):
        drop = Drop(name="seen", every=15, measure=measure, limit=0.5, metric="share", what="it")
        end = lambda rows: "enough" if rows[-1]["step"] == until else None
        return (StopWhen(end), drop)

    stopped = train(Autoencoder(), tmp_path / "run", watchers=watchers(20))
    assert stopped.stopped == "enough" and looks == [15]
    position = tmp_path / "run" / "checkpoints" / "20" / "position" / "metadata"
    assert json.loads(position.read_text())["position"]["seen"] == 0.9
    looks.clear()
    whole = train(Autoencoder(), watchers=watchers(None))
    assert looks == [15, 30, 45] and whole.last.step == 45
    assert whole.stopped == "it fell from 90.0 to 20.0 % in one look"
    rows = [r["share"] for r in whole.history if r["kind"] == "watch"]
    assert rows == [0.9, 0.9, 0.2]


def test_it_diverges_at_its_step_and_that_is_not_saved(tmp_path):
    rate = lambda step: jnp.where(step >= 12, jnp.inf, 0.1)
    with pytest.raises(DivergedError, match=r"^step 14: loss is nan, training stops here$"):
        run(tmp_path / "run", optimizer=optax.sgd(rate), checkpoint_every_s=60.0)
    assert read_rows(tmp_path / "run")[-1]["step"] == 13


def test_runs_do_not_import_the_training_of_classifiers():
    code = "import sys, advjax.runs; print([m for m in sys.modules if m.startswith('advjax.')])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "advjax.runs.run" in loaded
    for other in ("training", "evaluation", "attacks", "models", "data"):
        assert f"advjax.{other}" not in loaded
