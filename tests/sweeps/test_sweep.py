"""A sweep runs every cell once, and says how each ended."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from advjax.sweeps import Here, Processes, Store, SweepError, choices, sweep, tabulate
from advjax.sweeps.cell import read_outcome
from advjax.training import Stopped

ROOT = Path(__file__).parents[2]


def results(cells):
    """What may not depend on where and when a cell ran."""
    return [(c.name, c.place, c.config, c.status, c.reason, c.metrics) for c in cells]


def runs(folder):
    """How many times each cell began and ended."""
    found = {}
    for path in sorted((folder / "cells").glob("*/run/log")):
        words = [line.split()[1] for line in path.read_text().splitlines()]
        found[path.parts[-3]] = (words.count("begins"), words.count("ends"))
    return found


def test_every_cell_is_run_once_and_not_again(synthetic, tmp_path):
    told = []
    cells = sweep(synthetic, tmp_path / "s", progress=told.append)
    assert [c.status for c in cells] == ["done"] * 6
    assert [c.config["seed"] for c in cells] == [0, 1, 2, 0, 1, 2]
    assert cells[4].metrics == {"accuracy": pytest.approx(1 - 0.2 * 1.1), "nothing": None}
    assert told[-1].counts == {"done": 6} and told[-1].ended == told[-1].total == 6
    again = sweep(synthetic, tmp_path / "s")
    assert results(again) == results(cells)
    assert set(runs(tmp_path / "s").values()) == {(1, 1)}
    table = tabulate(cells)
    assert table.metric == "accuracy" and table.over == ("seed",)


def test_a_cell_that_cannot_be_had_is_a_result(synthetic, tmp_path):
    grid = choices(kind=["good", "bad", "diverged", "large"])
    told = []
    cells = sweep(synthetic, tmp_path / "s", grid=grid, progress=told.append)
    assert [c.status for c in cells] == ["done", "failed", "ko", "ko"]
    assert [c.reason for c in cells[1:]] == [
        "KeyError: 'no such thing'",
        "diverged at step 812",
        "out of memory, needs 31.0 GB more",
    ]
    folder = tmp_path / "s" / "cells" / cells[1].name
    assert "no such thing" in (folder / "error.txt").read_text()
    assert any("failed, KeyError" in t.text for t in told)
    # Only on request are they run again.
    sweep(synthetic, tmp_path / "s", grid=grid)
    assert runs(tmp_path / "s")[cells[1].name] == (1, 0)
    sweep(synthetic, tmp_path / "s", grid=grid, retry=True)
    assert runs(tmp_path / "s")[cells[1].name] == (2, 0)
    assert runs(tmp_path / "s")[cells[0].name] == (1, 1)


def test_worker_processes_find_the_same_as_this_one(digits, tmp_path):
    here = sweep(digits, tmp_path / "here")
    apart = sweep(digits, tmp_path / "apart", executor=Processes(2, environment=ONE_DEVICE))
    assert [c.status for c in here] == ["done", "done", "ko", "ko"]
    assert all("diverged at step" in c.reason for c in here[2:])
    for a, b in zip(here, apart, strict=True):
        assert (a.name, a.status, a.reason) == (b.name, b.status, b.reason)
        assert a.metrics == pytest.approx(b.metrics, abs=0.011)  # one image of 100
    names = {"last/clean", "last/worst", "last/robust/fgsm", "best/clean", "best/step", "step"}
    assert names <= set(apart[0].metrics)
    with Store(tmp_path / "apart") as store:
        history = store.history(apart[0].name)
        assert [r["step"] for r in history if r["kind"] == "evaluation"] == [10, 20, 30]
    assert (tmp_path / "apart" / "workers" / "worker-0.log").exists()


ONE_DEVICE = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_a_cell_that_ends_its_process_is_given_up_and_the_others_are_not(synthetic, tmp_path):
    grid = choices(kind=["ends", "good"], seed=range(2))
    told = []
    cells = sweep(synthetic, tmp_path / "s", grid=grid, executor=Processes(2), progress=told.append)
    assert [c.status for c in cells] == ["ko", "ko", "done", "done"]
    assert cells[0].reason == "ended its process 5 times: exit code 9"
    assert runs(tmp_path / "s")[cells[0].name] == (5, 0)
    assert sum("it waits again" in t.text for t in told) == 8


def test_another_sweep_in_the_folder_is_refused_and_nothing_is_lost(synthetic, tmp_path):
    folder = tmp_path / "s"
    cells = sweep(synthetic, folder)
    from advjax.experiment import load_experiment

    base = load_experiment(synthetic).config(sleep=0.01)
    with pytest.raises(SweepError, match=r"another sweep: base.sleep: the run has 0.0, given 0.01"):
        sweep(synthetic, folder, base=base)
    synthetic.write_text(synthetic.read_text() + "\n# changed\n")
    with pytest.raises(SweepError, match="another sweep: source: the run has .sha256"):
        sweep(synthetic, folder)
    with Store(folder) as store:
        assert results(store.cells()) == results(cells)
    assert len(sweep(synthetic, folder, overwrite=True)) == 6
    assert set(runs(folder).values()) == {(1, 1)}

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(SweepError, match="is no sweep and not empty: it holds thesis.tex"):
            sweep(synthetic, tmp_path / "other", overwrite=overwrite)
    with pytest.raises(SweepError, match="or it is a file"):
        sweep(synthetic, tmp_path / "other" / "thesis.tex")
    with pytest.raises(SweepError, match="is no sweep: it has no sweep.jsonl"):
        Store(tmp_path / "other")
    (tmp_path / "odd").mkdir()
    for odd in (
        b"no sweep at all" * 100,
        b"no sweep at all\n" * 100,
        b"[1]\n",
        b'{"format": 2}\n{"name": 1}\n',
    ):
        (tmp_path / "odd" / "sweep.jsonl").write_bytes(odd)
        with pytest.raises(SweepError, match="sweep.jsonl is damaged"):
            sweep(synthetic, tmp_path / "odd")
        assert (tmp_path / "odd" / "sweep.jsonl").read_bytes() == odd
    (tmp_path / "odd" / "sweep.jsonl").write_text('{"format": 3}\n{"name": 1}\n')
    with pytest.raises(SweepError, match="is of format 3; expected format 2"):
        Store(tmp_path / "odd")


def test_a_line_that_was_cut_off_does_not_count(synthetic, tmp_path):
    cells = sweep(synthetic, tmp_path / "s")
    with (tmp_path / "s" / "sweep.jsonl").open("a") as file:
        file.write(f'{{"name": "{cells[0].name}", "status": "wait')
    with Store(tmp_path / "s") as store:
        assert results(store.cells()) == results(cells)
    assert results(sweep(synthetic, tmp_path / "s")) == results(cells)
    assert set(runs(tmp_path / "s").values()) == {(1, 1)}


def test_a_longer_grid_runs_what_is_new(synthetic, tmp_path):
    told = []
    sweep(synthetic, tmp_path / "s", grid=choices(seed=range(2)))
    cells = sweep(synthetic, tmp_path / "s", grid=choices(seed=[1, 5]), progress=told.append)
    assert [c.config["seed"] for c in cells] == [0, 1, 5]  # what ended stays
    assert "1 cells are new; 1 are no longer in the grid" in [t.text for t in told]
    assert set(runs(tmp_path / "s").values()) == {(1, 1)}


def test_a_result_that_was_written_before_the_driver_ended_is_not_computed_again(
    synthetic, tmp_path
):
    cells = sweep(synthetic, tmp_path / "s")
    (tmp_path / "s" / "sweep.jsonl").rename(tmp_path / "s" / "sweep.db")  # as of an earlier version
    for look in (lambda: sweep(synthetic, tmp_path / "s"), lambda: Store(tmp_path / "s")):
        with pytest.raises(
            SweepError, match=r"earlier version, sweep.db; expected sweep.jsonl: over"
        ):
            look()
    (tmp_path / "s" / "cells" / cells[0].name / "result.json").write_text("{cut o")
    (tmp_path / "s" / "sweep.jsonl").touch()
    again = sweep(synthetic, tmp_path / "s")
    assert results(again) == results(cells)
    counts = runs(tmp_path / "s")
    assert counts.pop(cells[0].name) == (2, 2) and set(counts.values()) == {(1, 1)}
    sweep(synthetic, tmp_path / "s", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [".lock", "cells", "sweep.jsonl"]


def test_two_sweeps_on_one_folder_do_not_run_together(synthetic, tmp_path):
    code = (
        "import sys; from advjax.sweeps import sweep, choices; "
        "sweep(sys.argv[1], sys.argv[2], grid=choices(sleep=[20.0]))"
    )
    folder = tmp_path / "s"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(synthetic), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        until = time.monotonic() + 60
        while not list(folder.glob("cells/*/run/log")) and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(SweepError, match="another sweep works on it"):
            sweep(synthetic, folder, grid=choices(sleep=[20.0]))
        with Store(folder) as store:  # looking on is possible
            assert store.counts() == {"running": 1}
    finally:
        other.kill()
        other.wait()


def test_a_signal_stops_the_sweep_and_running_cells_wait_again(synthetic, tmp_path):
    grid = choices(sleep=[0.0, 60.0, 61.0, 62.0])
    folder = tmp_path / "s"
    executor = Processes(2)

    def interrupt():
        until = time.monotonic() + 60
        while len(list(folder.glob("cells/*/run/log"))) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stopped) as stopped:
        sweep(synthetic, folder, grid=grid, executor=executor)
    assert stopped.value.code == 143 and "1 of 4 cells; the same command" in str(stopped.value)
    with Store(folder) as store:
        assert store.counts() == {"done": 1, "waiting": 3}
    for pid in executor.pids():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_bad_input_is_told(synthetic, tmp_path):
    with pytest.raises(ValueError, match="no experiment file"):
        sweep(tmp_path / "none.py", tmp_path / "s")
    with pytest.raises(ValueError, match="the grid sets epochs; fields of Config are"):
        sweep(synthetic, tmp_path / "s", grid=choices(epochs=[1]))
    with pytest.raises(ValueError, match="the grid is empty"):
        sweep(synthetic, tmp_path / "s", grid=choices(seed=[1]).where(lambda s: False))
    synthetic.write_text(synthetic.read_text().replace("grid = choices", "other = choices"))
    with pytest.raises(ValueError, match="the file's grid is NoneType; expected a Grid"):
        sweep(synthetic, tmp_path / "s")
    with pytest.raises(ValueError, match="workers=0"):
        Processes(0)
    assert not (tmp_path / "s").exists()


def test_a_cell_folder_explains_itself(synthetic, tmp_path):
    (cell,) = sweep(synthetic, tmp_path / "s", grid=choices(seed=[4]), executor=Here())
    folder = tmp_path / "s" / "cells" / cell.name
    assert json.loads((folder / "cell.json").read_text())["config"] == dict(cell.config)
    outcome = read_outcome(folder)
    assert outcome is not None and outcome.metrics == cell.metrics


def test_cells_that_do_not_fit_are_told_before_they_are_tried(digits, tmp_path):
    cells = sweep(digits, tmp_path / "s", grid=choices(seed=[0]), memory_gb=1e-4)
    assert [c.status for c in cells] == ["ko"]
    assert re.fullmatch(r"out of memory, needs 0.00\d+ GB, 0.0001 GB are there", cells[0].reason)
    assert not (tmp_path / "s" / "cells" / cells[0].name / "run").exists()


@pytest.mark.slow
def test_cells_that_run_together_end_as_they_do_in_turn(digits, tmp_path):
    digits.write_text(
        digits.read_text()
        .replace("optax.sgd(config.lr)", "optax.inject_hyperparams(optax.sgd)(config.lr)")
        .replace("batch_size=64", "batch_size=config.batch_size")
        .replace("steps: int = 30", "steps: int = 30\n    batch_size: int = 64")
    )
    grid = choices(lr=[0.01, 1e30, 0.02], seed=[0, 1], batch_size=[32, 64])
    turn = sweep(digits, tmp_path / "turn", grid=grid)
    told = []
    together = sweep(
        digits, tmp_path / "together", grid=grid, executor=Here(together=5), progress=told.append
    )
    for a, b in zip(turn, together, strict=True):
        assert (a.name, a.status, a.reason) == (b.name, b.status, b.reason)
        assert a.metrics == pytest.approx(b.metrics, abs=0.011)
    # Two programs, and five cells at a time: the last two are one of each.
    assert max(t.counts.get("running", 0) for t in told) == 5
    assert sum(c.status == "ko" for c in together) == 4
    with Store(tmp_path / "together") as store:
        assert len(store.history(together[0].name)) == len(store.history(together[8].name)) > 30


def test_a_file_that_was_changed_is_run_as_it_is_now(synthetic, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    grid = choices(seed=[0])
    (before,) = sweep(synthetic, tmp_path / "before", grid=grid)
    then = synthetic.stat()
    synthetic.write_text(synthetic.read_text().replace("1 - config.lr", "2 - config.lr"))
    os.utime(synthetic, ns=(then.st_atime_ns, then.st_mtime_ns))  # edited in the same second
    (after,) = sweep(synthetic, tmp_path / "after", grid=grid)
    assert after.metrics["accuracy"] == before.metrics["accuracy"] + 1


MAPS = """
import mmap
from pathlib import Path

import jax

from advjax.sweeps.cell import make_room

used = lambda: len(Path("/proc/self/maps").read_bytes().splitlines())
limit = int(Path("/proc/sys/vm/max_map_count").read_text())
first, trained = used(), [jax.jit(lambda x, i=i: jax.numpy.tanh(x @ x) + i) for i in range(30)]
for program in trained:
    program(jax.numpy.ones((50, 50)))
compiled = used()
make_room()
assert used() >= compiled > first + 50, "there was room"
pages = [mmap.mmap(-1, 4096, prot=mmap.PROT_READ | i % 2 * mmap.PROT_WRITE)
         for i in range(limit // 2)]
crowded = used()
assert crowded > limit // 2
make_room()
assert crowded - used() > 50, (crowded, used())
assert float(trained[3](jax.numpy.ones((50, 50)))[0, 0]) == 4
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps")
def test_compiled_programs_make_room_before_the_system_has_no_more_maps():
    subprocess.run([sys.executable, "-c", MAPS], check=True)
