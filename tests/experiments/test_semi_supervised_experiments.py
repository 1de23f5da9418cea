"""The studies that learn from images without labels, on scikit-learn's digits."""

import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from advjax.data import load
from advjax.experiment import load_experiment
from advjax.training import fit

FOLDER = Path(__file__).parents[2] / "experiments"


def loaded(name, monkeypatch):
    experiment = load_experiment(FOLDER / f"{name}.py")
    module = sys.modules[f"advjax_experiment_{name}"]
    monkeypatch.setattr(module, "fit", partial(fit, devices=jax.devices()[:1]))
    return partial(experiment.config, data="digits", seeds=(0,)), experiment.main, module


@pytest.mark.slow
def test_virtual_adversarial_training_has_both_arms(tmp_path, monkeypatch):
    config, main, module = loaded("virtual_adversarial_training", monkeypatch)
    few = module.labelled(load("digits", "train"), 30, seed=1)
    assert np.bincount(few.y).tolist() == [3] * 10
    small = config(labels=(20,), hidden=(8,), steps=2, batch_size=10, apgd_steps=2, examples=8)
    found = main(small, tmp_path)
    assert [row["objective"] for row in found["rows"]] == ["supervised", "VAT"]
    assert all(row["apgd"] <= row["clean"] for row in found["rows"])
    assert len(found["table"].splitlines()) == 3


@pytest.mark.slow
def test_domain_adaptation_has_three_arms(tmp_path, monkeypatch):
    config, main, module = loaded("domain_adaptation", monkeypatch)
    digits = load("digits", "test").subset(20)
    first, again, other = (module.textured(digits, 3, seed).x for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any() and first.shape[3] == 3
    found = main(config(size=32, pictures=3, steps=2, batch_size=4, examples=8), tmp_path)
    assert [row["arm"] for row in found["rows"]] == ["source only", "DANN", "target only"]
    assert (tmp_path / "domains-seed-0.png").exists()
    assert len(found["table"].splitlines()) == 4


@pytest.mark.slow
def test_graph_regularization_trains_on_the_labelled_share(tmp_path, monkeypatch):
    config, main, module = loaded("graph_regularization", monkeypatch)
    small = config(size=200, share=0.1, epochs=1, batch_size=10)
    data = load("digits", "train").subset(small.size)
    graph, same = module.graph_of(small, data)
    arm = module.training(small, data, graph, seed=0)
    assert len(arm.train) == 20 and len(arm.unlabelled) == 180 and 0.5 < same <= 1
    (row,) = main(small, tmp_path)["rows"]
    assert row["gain"] == row["with"] - row["without"]
