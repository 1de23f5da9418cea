"""The comparisons of training objectives, on made-up images."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from advjax import PGD
from advjax.data import Dataset
from advjax.experiment import load_experiment
from advjax.training import fit

FOLDER = Path(__file__).parents[2] / "experiments"
RECIPES = (
    "madry", "trades", "mart", "awp_madry", "awp_trades", "free", "fast", "grad_align",
)  # fmt: skip


def made_up(name, split, data_dir=None):
    rng = np.random.default_rng(len(split))
    shape = (32, 32, 3) if name == "cifar10" else (28, 28, 1)
    x = rng.integers(0, 256, (80, *shape), dtype=np.uint8)
    return Dataset(x, np.arange(80) % 10, name=name, split=split)


def loaded(name, monkeypatch):
    experiment = load_experiment(FOLDER / f"{name}.py")
    module = sys.modules[f"advjax_experiment_{name}"]
    monkeypatch.setattr(module, "load", made_up)
    if hasattr(module, "fit"):
        monkeypatch.setattr(module, "fit", partial(fit, devices=jax.devices()[:1]))
    return experiment, module


@pytest.mark.slow
def test_every_objective_gets_the_same_passes(tmp_path, monkeypatch):
    experiment, module = loaded("objectives", monkeypatch)
    config = experiment.config(passes=1440, batch_size=10, validation=8, seeds=(0,), examples=4)
    for name in module.NAMES:
        arm, passes = module.training(config, made_up("mnist", "train"), name, 0)
        assert arm.steps * passes * arm.batch_size == config.passes
    monkeypatch.setattr(module, "AutoAttack", partial(PGD, steps=1))
    two = dataclasses.replace(config, passes=180, objectives=("FreeAT", "AWP"))
    found = experiment.main(two, tmp_path)
    assert [row["objective"] for row in found["rows"][:1]] == ["FreeAT"]
    assert {row["passes"] for row in found["rows"]} == {1, 9}
    assert len(found["table"].splitlines()) == 1 + len(found["rows"])


def trace(training):
    """The shapes of a gradient step."""
    params, stats = jax.eval_shape(lambda: training.variables(jax.random.key(0)))
    batch = {
        "x": jax.ShapeDtypeStruct((8, 32, 32, 3), "float32"),
        "y": jax.ShapeDtypeStruct((8,), "int32"),
    }
    if training.full_objective.carries:
        batch["carry"] = batch["x"]
    apply = dataclasses.replace(training.network(), module=training.module, axis_name=None)

    def loss(params, stats, batch):
        keys = jax.random.split(jax.random.key(0), 8)
        return training.objective(keys, apply, params, stats, batch)[0]

    return params, jax.eval_shape(jax.grad(loss), params, stats, batch)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_of_the_residual_network_traces(recipe, monkeypatch):
    experiment, module = loaded("cifar10_objectives", monkeypatch)
    assert set(module.RECIPES) == set(RECIPES)
    small = experiment.config(
        objective=recipe, batch_size=8, validation=8, stages=(1, 1), width=8, epochs=20
    )
    training = experiment.build(small)
    assert training.total_steps == 20 * 9
    params, gradient = trace(training)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    rate = module.rate(module.RECIPES[recipe], 1000)
    assert max(float(rate(i)) for i in range(0, 1000, 10)) == pytest.approx(
        module.RECIPES[recipe].lr, rel=0.01
    )
    assert float(rate(999)) < 0.11 * module.RECIPES[recipe].lr


def test_by_default_it_is_the_network_of_the_papers(monkeypatch):
    experiment, _ = loaded("cifar10_objectives", monkeypatch)
    training = experiment.build(experiment.config(batch_size=8, validation=8))
    params, _ = jax.eval_shape(lambda: training.variables(jax.random.key(0)))
    assert sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params)) > 11e6


@pytest.mark.slow
def test_the_study_of_catastrophic_overfitting_has_its_arms(tmp_path, monkeypatch):
    experiment, _ = loaded("catastrophic_overfitting", monkeypatch)
    config = experiment.config(size=40, epochs=1, batch_size=20, seeds=(0,), examples=8)
    found = experiment.main(config, tmp_path)
    assert [row["arm"] for row in found["rows"]] == ["FGSM", "watched", "GradAlign"]
    assert len(found["table"].splitlines()) == 4
