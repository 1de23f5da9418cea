"""The studies of defences: what they count, on scikit-learn's digits and on made-up rows."""

import functools
import sys
from pathlib import Path

import jax
import pytest

from advjax.experiment import load_experiment
from advjax.training import fit

FOLDER = Path(__file__).parents[2] / "experiments"


def loaded(name, monkeypatch):
    experiment = load_experiment(FOLDER / f"{name}.py")
    module = sys.modules[f"advjax_experiment_{name}"]
    monkeypatch.setattr(module, "fit", functools.partial(fit, devices=jax.devices()[:1]))
    return experiment, module


@pytest.mark.slow
def test_certificates_are_set_against_the_attacks(tmp_path, monkeypatch):
    experiment, _ = loaded("interval_bounds", monkeypatch)
    config = experiment.config(
        data="digits", network="mlp", size=500, seeds=(0,), examples=40, steps=2, queries=2
    )
    found = experiment.main(config, tmp_path)
    (row,) = found["rows"]
    assert row["certified"] <= row["worst"] <= row["clean"] and row["violations"] == 0
    assert len(found["table"].splitlines()) == 2


def test_thresholds_are_compared_at_a_small_clean_cost(monkeypatch):
    experiment, module = loaded("jump_relu", monkeypatch)
    row = lambda kappa, clean, ifgsm, worst: {
        **{"seed": 3, "eps": 0.1, "kappa": kappa},
        **{"clean": clean, "ifgsm": ifgsm, "worst": worst},
    }
    rows = [row(0.0, 99, 30, 29), row(0.2, 98.5, 40, 31), row(0.4, 97, 80, 20)]
    gain = module.compared(experiment.config(clean_cost=1.0), rows)
    assert gain["kappa"] == 0.2 and gain["ifgsm gain"] == 10 and gain["worst gain"] == 2


def test_a_table_of_defences_shows_what_is_missing(monkeypatch):
    _, module = loaded("defences", monkeypatch)
    numbers = dict.fromkeys(("clean", "known", "c&w", "transfer", "square", "worst"), 50.0)
    rows = [{"seed": 0, "defence": "JPEG", "passes": 1, "time": 9.25, **numbers}]
    header, line = module.table(rows, [], 10).splitlines()
    assert header.split()[:4] == ["seed", "defence", "clean", "pgd"]
    assert line.split()[:4] == ["0", "JPEG", "50", "-"] and "9.25" in line
