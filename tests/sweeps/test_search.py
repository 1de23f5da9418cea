"""Adaptive search: proposals, what they depend on, the median rule, and a killed search."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest

from advjax.sweeps import Here, Processes, Search, Store, SweepError, log_uniform, sweep, uniform
from advjax.sweeps.search import Rule, median_rule
from advjax.sweeps.store import Cell

VALLEY = '''"""A number, highest at lr .03, momentum .9 and width 32; slow when asked to be."""
import dataclasses, math, time


@dataclasses.dataclass(frozen=True)
class Config:
    lr: float = 0.1
    momentum: float = 0.0
    width: int = 16
    seed: int = 0
    sleep: float = 0.0


def main(config, run_dir):
    time.sleep(config.sleep)
    if config.width == 64 and config.lr > 0.5:
        raise FloatingPointError("diverged")
    lr, momentum = math.log10(config.lr / 0.03), config.momentum - 0.9
    return {"score": 1 - lr**2 - momentum**2 - (config.width != 32)}
'''
AXES = {"lr": log_uniform(1e-4, 10), "momentum": uniform(0, 1), "width": (16, 32, 64)}


@pytest.fixture
def valley(tmp_path):
    path = tmp_path / "valley.py"
    path.write_text(VALLEY)
    return path


def settings(cells):
    return [[cell.config[name] for name in AXES] for cell in cells]


def test_it_finds_better_settings_than_chance_with_as_many_cells(valley, tmp_path):
    found = {"tpe": [], "random": []}
    for sampler, scores in found.items():
        for seed in range(3):
            search = Search(AXES, 40, "score", seed=seed, sampler=sampler)
            cells = sweep(valley, tmp_path / f"{sampler}{seed}", grid=search)
            assert len(cells) == 40 == len({c.name for c in cells})
            assert {c.status for c in cells} <= {"done", "ko"}
            best = search.ranked(cells)[0]
            assert best.metrics["score"] == max(
                c.metrics["score"] for c in cells if c.status == "done"
            )
            scores.append(best.metrics["score"])
    assert statistics.mean(found["tpe"]) > statistics.mean(found["random"])
    assert min(found["tpe"]) > 0.9, found


def test_the_lowest_is_found_too(valley, tmp_path):
    search = Search({"momentum": uniform(0, 1)}, 25, "score", lowest=True)
    cells = sweep(valley, tmp_path / "s", grid=search)
    assert search.ranked(cells)[0].config["momentum"] < 0.05


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_cells(valley, tmp_path):
    search = Search({**AXES, "sleep": (0.05,)}, 25, "score", seed=3)
    straight = sweep(valley, tmp_path / "straight", grid=search)
    program = (
        "from advjax.sweeps import Search, log_uniform, uniform, sweep\n"
        "axes = {'lr': log_uniform(1e-4, 10), 'momentum': uniform(0, 1), 'width': (16, 32, 64),"
        " 'sleep': (0.05,)}\n"
        f"sweep({str(valley)!r}, {str(tmp_path / 'killed')!r},"
        " grid=Search(axes, 25, 'score', seed=3))"
    )

    def done():
        if not (tmp_path / "killed" / "sweep.jsonl").exists():
            return 0
        with contextlib.suppress(SweepError), Store(tmp_path / "killed") as store:
            return sum(c.status == "done" for c in store.cells())
        return 0  # its tables are not there yet

    kills = 0
    for until in (1, 7, 13, 19):
        child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
        while done() < until:
            assert child.poll() is None, child.communicate()
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        kills += child.returncode == -signal.SIGKILL
    assert kills >= 3
    killed = sweep(valley, tmp_path / "killed", grid=search)
    assert settings(killed) == settings(straight)
    assert [c.metrics for c in killed] == [c.metrics for c in straight]


def test_a_search_grows_but_does_not_change(valley, tmp_path):
    first = sweep(valley, tmp_path / "s", grid=Search(AXES, 12, "score"))
    more = sweep(valley, tmp_path / "s", grid=Search(AXES, 15, "score"))
    assert more[:12] == first and len(more) == 15
    assert settings(more) == settings(sweep(valley, tmp_path / "t", grid=Search(AXES, 15, "score")))
    with pytest.raises(SweepError, match="search.seed"):
        sweep(valley, tmp_path / "s", grid=Search(AXES, 15, "score", seed=1))


def test_workers_share_a_search(valley, tmp_path):
    told = []
    cells = sweep(
        valley, tmp_path / "s", grid=Search(AXES, 20, "score"), executor=Processes(3),
        progress=told.append,
    )  # fmt: skip
    assert len({c.name for c in cells}) == 20 and {c.status for c in cells} <= {"done", "ko"}
    assert {t.total for t in told[1:]} == {20}


def test_it_ends_when_the_axes_have_no_other_setting(valley, tmp_path):
    told = []
    search = Search({"width": (16, 32), "seed": (0, 1, 2)}, 50, "score")
    cells = sweep(valley, tmp_path / "s", grid=search, progress=told.append)
    assert len(cells) == 6 and "no other setting" in told[-1].text
    assert told[-1].total == 6
    assert {type(c.config["width"]) for c in cells} == {int}


DIGITS = '''"""A linear model of the digits; its learning rate decides."""
import dataclasses

import optax

from advjax import Standard, Training, create, load


@dataclasses.dataclass(frozen=True)
class Config:
    lr: float = 0.01
    seed: int = 0


def build(config):
    return Training(
        module=create("mlp", hidden=(16,)), objective=Standard(),
        optimizer=optax.inject_hyperparams(optax.adam)(learning_rate=config.lr),
        train=load("digits"), test=load("digits", "test"), epochs=4, batch_size=48,
        seed=config.seed,
    )
'''


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 4])
def test_bad_trainings_are_stopped_and_good_ones_end(together, tmp_path):
    path = tmp_path / "digits.py"
    path.write_text(DIGITS)
    search = Search({"lr": log_uniform(1e-6, 0.03)}, 20, "best/clean", seed=1)
    cells = sweep(path, tmp_path / "s", grid=search, executor=Here(together=together))
    assert {c.status for c in cells} == {"done"} and len(cells) == 20
    stopped = [c for c in cells if c.reason]
    whole = [c for c in cells if not c.reason]
    assert stopped and len(whole) >= 5
    steps = max(c.metrics["step"] for c in cells)
    for cell in stopped:
        assert cell.reason.startswith("median rule: clean ")
        assert cell.metrics["step"] < steps
    assert all(c.metrics["step"] == steps for c in whole)
    ranked = search.ranked(cells)
    assert ranked[0].metrics["best/clean"] > 0.9 and len(ranked) == 20
    assert ranked[-len(stopped) :] == [c for c in ranked if c in stopped]
    again = sweep(path, tmp_path / "s", grid=search, executor=Here(together=together))
    assert again == cells


def rows(*values):
    return [
        row
        for step, value in enumerate(values, 1)
        for row in (
            {"kind": "train", "step": 10 * step, "loss": 1.0},
            {"kind": "evaluation", "step": 10 * step, "clean": value},
        )
    ]


def test_the_rule_is_the_median_of_the_best_so_far():
    histories = [rows(0.1 * i, 0.0, 0.9) for i in range(1, 6)]
    assert median_rule(Search(AXES, 9, "best/clean"), histories[:4]) is None
    rule = median_rule(Search(AXES, 9, "best/clean"), histories)
    assert rule is not None
    assert {k: pytest.approx(v) for k, v in rule.medians.items()} == {"10": 0.3, "20": 0.3}
    assert rule(rows(0.31)) is None and rule(rows(3 * 0.1)) is None
    assert "clean 0.29 at step 10, below 0.3" in (rule(rows(0.29)) or "")
    assert rule(rows(0.31, 0.0)) is None, "its best so far counts"
    assert rule(rows(0.0, 0.0, 0.0)) is None, "the last step is never stopped"
    last = median_rule(Search(AXES, 9, "last/clean"), [*histories, rows(0.5, 0.5)])
    assert last is not None and last(rows(0.9, -1.0)) and not last(rows(0.9, 0.0))
    low = median_rule(Search(AXES, 9, "best/clean", lowest=True), histories)
    assert low is not None and low(rows(0.31)) and not low(rows(0.29))
    assert Rule(**json.loads(json.dumps(vars(rule)))) == rule
    for search in (Search(AXES, 9, "score"), Search(AXES, 9, "best/clean", stop_bad=False)):
        assert median_rule(search, histories) is None


def test_stopped_and_lost_cells_rank_behind(tmp_path):
    search = Search({"lr": log_uniform(1e-4, 1)}, 9, "best/clean")
    cell = lambda i, status, reason="", **metrics: Cell(
        str(i), i, {"lr": 0.1 * (i + 1)}, status, reason, metrics
    )
    cells = [
        cell(0, "done", **{"best/clean": 0.5, "step": 9}),
        cell(1, "done", **{"best/clean": 0.9, "step": 3}, reason="median rule: x"),
        cell(2, "ko"),
        cell(3, "done", **{"best/clean": 0.7, "step": 6}, reason="early stopping: y"),
        cell(4, "running"),
    ]
    assert [c.name for c in search.ranked(cells)] == ["3", "0", "1"]
    began = time.monotonic()
    assert 1e-4 <= search.propose(cells)["lr"] <= 1
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"axes": {}}, "axes={}"),
        ({"trials": 0}, "trials=0; expected at least 1"),
        ({"sampler": "cma"}, "sampler='cma'; expected one of tpe, random"),
        ({"axes": {"lr": 3}}, "axis lr: given 3"),
    ],
)
def test_bad_searches_are_told(arguments, words):
    with pytest.raises(ValueError, match=words):
        Search(**{"axes": AXES, "trials": 3, **arguments})


def test_an_axis_that_is_no_field_and_a_missing_library_are_told(valley, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the grid sets rate"):
        sweep(valley, tmp_path / "s", grid=Search({"rate": (1, 2)}, 3, "score"))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'advjax\[search\]'"):
        sweep(valley, tmp_path / "t", grid=Search(AXES, 3, "score"))
