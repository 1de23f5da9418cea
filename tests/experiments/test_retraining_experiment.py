"""The study of retraining: every arm is there, on a few made-up images."""

import sys
from pathlib import Path

import numpy as np
import pytest

from advjax.data import Dataset
from advjax.experiment import load_experiment

FILE = Path(__file__).parents[2] / "experiments" / "retraining.py"


@pytest.mark.slow
def test_a_round_is_measured_on_training_and_test_images(tmp_path, monkeypatch):
    experiment = load_experiment(FILE)
    module = sys.modules["advjax_experiment_retraining"]
    rng = np.random.default_rng(0)
    data = Dataset(rng.integers(0, 256, (40, 28, 28, 1), np.uint8), np.arange(40) % 10)
    monkeypatch.setattr(module, "load", lambda *_: data)
    small = {"size": 24, "epochs": 1, "batch_size": 8, "examples": 8}
    config = experiment.config(seeds=(0,), warm=(True,), rounds=1, steps=2, **small)
    found = experiment.main(config, tmp_path)
    (row,) = found["rows"]
    assert (row["start"], row["round"], row["images"], row["changed"]) == ("warm", 0, 24, None)
    assert row["apgd"] >= 100 - row["clean"] and row["own"] >= 100 - row["clean"]
    assert found["stopped"] == ["warm, seed 0: round limit"] or row["new"] == 0
    assert len(found["table"].splitlines()) == 4
