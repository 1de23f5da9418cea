"""The sweep of attacks: one trace of each attack for all radii, seeds and networks."""

from pathlib import Path

import flax.linen as nn
import jax
import pytest

from advjax.experiment import load_experiment
from advjax.sweeps import Here, Processes, sweep, tabulate
from advjax.sweeps import cell as sweep_cell

PATH = Path(__file__).parents[2] / "experiments" / "attack_grid.py"
TRACES = []


class Counted(nn.Module):
    """A linear model that counts its traces."""

    @nn.compact
    def __call__(self, x):
        TRACES.append(None)
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@pytest.mark.slow
def test_all_radii_seeds_and_networks_are_one_trace_of_each_attack(tmp_path, monkeypatch):
    experiment = sweep_cell.loaded(str(PATH))
    monkeypatch.setitem(experiment.main.__globals__, "create", lambda *_, **__: Counted())
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    base = experiment.config(runs=tmp_path / "runs", epochs=1, examples=20)
    whole = experiment.grid(base).where(lambda s: s["attack"] in ("fgsm", "pgd"))

    def run(part, name):
        cells = sweep(PATH, tmp_path / name, grid=whole.where(part), base=base, executor=Here())
        assert {c.status for c in cells} == {"done"}
        return cells

    run(lambda s: s["network"] != "standard" and s["eps"] == 0.05 and s["seed"] == 0, "first")
    run(lambda s: s["network"] == "standard" and s["eps"] == 0.05 and s["seed"] == 0, "second")
    before = len(TRACES)
    cells = run(lambda s: True, "all")
    assert len(TRACES) == before and len(cells) == 48
    table = tabulate(cells)
    assert (table.metric, table.row_axes, table.column_axes) == (
        "robust", ("network", "attack"), ("eps",),
    )  # fmt: skip
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"standard", "madry", "trades"}
    for cell in cells:
        assert cell.metrics["low"] <= cell.metrics["robust"] <= cell.metrics["high"]


@pytest.mark.slow
def test_workers_wait_for_the_one_that_trains(tmp_path):
    experiment = load_experiment(PATH)
    base = experiment.config(runs=tmp_path / "runs", epochs=3, examples=20)
    part = experiment.grid(base).where(lambda s: s["network"] == "madry" and s["attack"] == "fgsm")
    executor = Processes(3, environment={"JAX_NUM_CPU_DEVICES": "1"})
    cells = sweep(PATH, tmp_path / "s", grid=part, base=base, executor=executor)
    assert [c.status for c in cells] == ["done"] * 8
    assert len({c.worker for c in cells}) == 3
    assert len(list((tmp_path / "runs").iterdir())) == 1
