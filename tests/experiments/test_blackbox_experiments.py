"""The studies of substitutes and of transfer, on scikit-learn's digits."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from advjax.data import load, to_float
from advjax.experiment import load_experiment
from advjax.training import fit

FOLDER = Path(__file__).parents[2] / "experiments"


def loaded(name, monkeypatch):
    experiment = load_experiment(FOLDER / f"{name}.py")
    module = sys.modules[f"advjax_experiment_{name}"]
    if hasattr(module, "fit"):
        monkeypatch.setattr(module, "fit", partial(fit, devices=jax.devices()[:1]))
    return experiment, module


@pytest.mark.slow
def test_the_substitute_study_counts_its_queries(tmp_path, monkeypatch):
    experiment, _ = loaded("blackbox_substitute", monkeypatch)
    config = experiment.config(
        data="digits", oracle_epochs=1, held_out=20, rounds=1, seeds=(0,), examples=40
    )
    found = experiment.main(dataclasses.replace(config, substitute_epochs=2), tmp_path)
    (row,) = found["rows"]
    assert [r["queries"] for r in row["rounds"]] == [20, 40] and row["queries"] == 40
    assert row["examples"] == 40 and row["transferred"] <= row["clean"]
    assert len(found["table"].splitlines()) == 2
    page = (tmp_path / "report.html").read_text()
    assert "label queries" in page and "FGSM, transferred" in page


def test_the_nearest_leaf_is_the_nearest_image_of_another_class(monkeypatch):
    from sklearn.tree import DecisionTreeClassifier

    _, module = loaded("transfer_matrix", monkeypatch)
    train, test = load("digits", "train"), load("digits", "test").subset(30)
    flat = np.asarray(to_float(train.x)).reshape(len(train), -1)
    tree = DecisionTreeClassifier(random_state=0).fit(flat, train.y)
    x = np.asarray(to_float(test.x))
    near = module.nearest_leaf(tree, x)
    rows = lambda x: x.reshape(len(x), -1)
    own = tree.predict(rows(x))
    assert (tree.predict(rows(near)) != own).all()
    assert ((near * 255) - np.round(near * 255) < 1e-3).all() and near.min() >= 0 <= near.max() <= 1
    distance = np.linalg.norm(rows(near - x), axis=1)
    # No example of another class is nearer, and halfway there the class is still the old one.
    others = np.linalg.norm(rows(x)[:, None] - flat, axis=2)
    others[tree.predict(flat) == own[:, None]] = np.inf
    assert (distance <= others.min(1) + 1e-6).all() and (distance < 0.5 * others.min(1)).any()
    halfway = np.float32(0.5) * (x + near)
    assert (tree.predict(rows(halfway)) == own).mean() > 0.8


def test_soft_neighbours_answer_as_neighbours_do(monkeypatch):
    _, module = loaded("transfer_matrix", monkeypatch)
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(20, 3, 3, 1)).astype(np.float32)
    points = tuple(rng.uniform(size=(5 + k, 9)).astype(np.float32) for k in range(3))
    soft = module.SoftNeighbours(points=points, temperature=1e-3)
    nearest = [np.square(x.reshape(20, 1, 9) - p).sum(2).min(1) for p in points]
    logits = soft(x)
    np.testing.assert_array_equal(np.argmax(logits, 1), np.argmin(nearest, 0))
    np.testing.assert_allclose(-logits.T * np.float32(1e-3), nearest, atol=0.01)
    assert np.isfinite(jax.grad(lambda x: soft(x).sum())(x)).all()


@pytest.mark.slow
def test_the_transfer_study_has_all_techniques_on_both_axes(tmp_path, monkeypatch):
    experiment, _ = loaded("transfer_matrix", monkeypatch)
    config = experiment.config(
        data="digits", network="mnist_fast", size=150, epochs=1, seeds=(3,), examples=30
    )
    found = experiment.main(config, tmp_path)
    for values in found["matrices"].values():
        values = np.array(values)
        assert values.shape == (5, 5) and (values >= 0).all() and (values <= 100).all()
    assert found["seeds"][0]["targets"][:3] == ["DNN A", "DNN B", "LR A"]
    # White boxes: what the tree's own nearest images are, and FGSM on linear models.
    same = np.array(found["matrices"]["fooled, same set"])
    assert same[3, 3] == 100 and same[1, 1] > 80 and same[2, 2] > 80
    assert {p.name for p in tmp_path.glob("*.svg")} == {"between-sets.svg", "matrix-seed-3.svg"}
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["blackbox_substitute", "transfer_matrix"])
def test_the_card_has_no_machine_paths(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert "/work" not in text and "/tmp" not in text and "Measured" in text
