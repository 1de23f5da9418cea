"""Every experiment file: its card, its options, and a few steps on made-up images."""

from __future__ import annotations

import ast
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from advjax.data import Dataset
from advjax.experiment import Experiment, load_experiment
from advjax.training import fit

FILES = sorted((Path(__file__).parents[2] / "experiments").glob("*.py"))
NAMES = [path.stem for path in FILES]


def made_up(name: str, split: str, data_dir: object = None) -> Dataset:
    """Coloured noise with the shape of the real set."""
    rng = np.random.default_rng(len(split))
    shape = (32, 32, 3) if name == "cifar10" else (28, 28, 1)
    x = rng.integers(0, 256, (40, *shape), dtype=np.uint8)
    return Dataset(x, np.arange(40) % 10, name=name, split=split)


def loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The experiment with ``made_up`` in the place of its data, trained on one device."""
    experiment = load_experiment(path)
    module = sys.modules[f"advjax_experiment_{path.stem}"]
    monkeypatch.setattr(module, "load", made_up)
    if hasattr(module, "fit"):
        monkeypatch.setattr(module, "fit", functools.partial(fit, devices=jax.devices()[:1]))
    return experiment


def test_there_are_the_four_experiments() -> None:
    assert set(NAMES) >= {"mnist_fast", "mnist_madry", "cifar10_madry", "label_leaking"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_docstring_is_the_experiments_card(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    claim = text.split("\n\n")[0].splitlines()[0]
    assert claim.endswith(".") and len(claim) < 100
    command = "sweep" if "\ndef grid(" in path.read_text() else "train"
    for part in (
        "Source:", f"advjax {command} experiments/{path.name}", "Hardware and time:", "Expected:",
    ):  # fmt: skip
        assert part in text, f"{path.name} lacks {part}"
    assert "Measured" in text


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_settings_have_a_data_folder_and_a_seed(path: Path) -> None:
    names = {field.name for field in dataclasses.fields(load_experiment(path).config)}
    assert "data_dir" in names and {"seed", "seeds"} & names


@pytest.mark.parametrize("name", ["mnist_fast", "mnist_madry"])
def test_trainings_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = loaded(FILES[NAMES.index(name)], monkeypatch)
    assert experiment.build is not None
    training = experiment.build(experiment.config(batch_size=8, validation=8))
    training = dataclasses.replace(training, epochs=None, steps=2)
    result = fit(training, devices=jax.devices()[:1])
    assert result.last.step == 2 and np.isfinite(result.history[0]["loss"])
    assert set(result.last.metrics) == {
        "clean",
        "worst",
        *(f"robust/{n}" for n in training.attacks),
    }


@pytest.mark.parametrize("options", [{}, {"bf16": True, "craft_train": True}])
def test_the_residual_network_traces(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes only: compiling it takes longer than the whole file."""
    experiment = loaded(FILES[NAMES.index("cifar10_madry")], monkeypatch)
    assert experiment.build is not None
    training = experiment.build(experiment.config(batch_size=8, steps=2, **options))
    assert training.total_steps == 2
    params = training.params_shape()
    assert sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params)) > 11e6
    _, stats = jax.eval_shape(lambda: training.variables(jax.random.key(0)))
    x, y = jax.ShapeDtypeStruct((8, 32, 32, 3), "float32"), jax.ShapeDtypeStruct((8,), "int32")

    def loss(params: Any, stats: Any, x: Any, y: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 8)
        apply = dataclasses.replace(training.network(), axis_name=None)
        apply = dataclasses.replace(apply, module=training.module)
        return training.objective(keys, apply, params, stats, {"x": x, "y": y})[0]

    out = jax.eval_shape(jax.grad(loss), params, stats, x, y)
    assert jax.tree.structure(out) == jax.tree.structure(params)


def test_the_study_of_label_leaking_has_both_arms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = loaded(FILES[NAMES.index("label_leaking")], monkeypatch)
    assert experiment.main is not None
    config = experiment.config(epochs=1, batch_size=8, seeds=(0,), examples=8)
    found = experiment.main(config, tmp_path)
    assert [(row["seed"], row["random_start"]) for row in found["rows"]] == [(0, False), (0, True)]
    assert len(found["table"].splitlines()) == 3
