"""The studies of regularisers and of FGSM training, on made-up images and a tiny perceptron."""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from advjax.data import Dataset
from advjax.experiment import load_experiment
from advjax.models import create
from advjax.training import fit

FOLDER = Path(__file__).parents[2] / "experiments"


def made_up(name, split, data_dir=None):
    x = np.random.default_rng(len(split)).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    return Dataset(x, np.arange(40) % 10, name=name, split=split)


def tiny(name, **fields):
    return create("mlp", hidden=(4,), dropout=fields.get("dropout"))


def loaded(name, monkeypatch):
    experiment = load_experiment(FOLDER / f"{name}.py")
    module = sys.modules[f"advjax_experiment_{name}"]
    monkeypatch.setattr(module, "load", made_up)
    monkeypatch.setattr(module, "create", tiny)
    monkeypatch.setattr(module, "fit", functools.partial(fit, devices=jax.devices()[:1]))
    return experiment, module


@pytest.mark.slow
def test_adversarial_regularisation_is_shown_transfer_beside_white_box(tmp_path, monkeypatch):
    experiment, module = loaded("adversarial_regularization", monkeypatch)
    monkeypatch.setitem(module.SETTINGS, "mnist", (0.2, ("l2",)))
    config = experiment.config(
        data=("mnist",), epochs=1, batch_size=8, steps=2, seeds=(0,), examples=40
    )
    found = experiment.main(config, tmp_path)
    plain, regularised = found["rows"]
    assert plain["network"] == "plain" and regularised["network"] == "step 0.2, l2"
    assert plain["transferred"] == plain["fgsm"]  # one seed: the source is the network itself
    for row in (plain, regularised):
        assert max(row["transferred"], row["fgsm"], row["apgd"], row["apgd-l2"]) <= row["clean"]
    assert len(found["table"].splitlines()) == 3


@pytest.mark.slow
def test_the_study_of_fgsm_training_has_its_controls(tmp_path, monkeypatch):
    experiment, _ = loaded("fgsm_training", monkeypatch)
    config = experiment.config(epochs=1, batch_size=8, seeds=(0,), strong_examples=8)
    found = experiment.main(config, tmp_path)
    assert [row["trained_on"] for row in found["rows"]] == ["clean", "fgsm", "signs", "uniform"]
    assert all(row["fgsm"] >= row["clean"] for row in found["rows"])
    assert len(found["table"].splitlines()) == 5


@pytest.mark.slow
def test_the_study_of_ensembles_judges_on_a_network_that_no_arm_saw(tmp_path, monkeypatch):
    experiment, module = loaded("ensemble_adversarial", monkeypatch)
    config = experiment.config(epochs=1, batch_size=8, train_examples=40, seeds=(0,), steps=2)
    found = experiment.main(dataclasses.replace(config, examples=20), tmp_path)
    assert [row["trained on"] for row in found["rows"]] == ["clean", "fgsm", "ensemble"]
    assert all(row["worst"] <= min(row["clean"], row["apgd"]) for row in found["rows"])
    folders = {p.name for p in (tmp_path / "seed-0").iterdir()}
    assert folders == {f"on-{n}" for n in (*module.SOURCES, module.UNSEEN)} | {
        "clean", "fgsm", "ensemble",
    }  # fmt: skip
    assert len(found["table"].splitlines()) == 4


def test_random_signs_move_every_pixel_by_eps(monkeypatch):
    _, module = loaded("fgsm_training", monkeypatch)
    x = np.full((2, 4, 4, 1), 0.9, np.float32)
    noisy = module.RandomSigns(eps=0.25)(jax.random.split(jax.random.key(0)), None, x, None)
    np.testing.assert_allclose(np.abs(noisy - x), 0.25, rtol=1e-5)
    assert (noisy[0] != noisy[1]).any() and (noisy[0] > 1).any() and (noisy[0] < 0.9).any()


@pytest.mark.slow
def test_the_study_of_controls_has_every_arm_at_every_radius(tmp_path, monkeypatch):
    experiment, _ = loaded("dropout_and_weight_decay", monkeypatch)
    config = experiment.config(epochs=1, batch_size=8, queries=2, seeds=(0,), examples=8)
    found = experiment.main(config, tmp_path)
    assert len(found["rows"]) == 7 * len(config.eps)
    names = ("FGSM", "PGD-40", "Auto-PGD", "Square")
    assert all(row["worst"] <= min(row[name] for name in names) for row in found["rows"])
