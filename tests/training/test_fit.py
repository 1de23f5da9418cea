"""The loop: what a run gives, keeps, refuses and says."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import digits_training, one_device

from advjax.attacks import FGSM
from advjax.balls import Linf
from advjax.data import load
from advjax.models import create
from advjax.runs.checkpoint import steps_in
from advjax.training import (
    CheckpointError,
    DivergedError,
    Madry,
    RunError,
    fit,
    load_classifier,
    read_config,
    read_rows,
)

UNTESTED = dict(test=None, attacks={})


def same(a, b):
    return all(
        np.asarray(u).tobytes() == np.asarray(v).tobytes()
        for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_run_reports_best_and_last_and_every_step(finished):
    result, events = finished
    evaluations = [r for r in result.history if r["kind"] == "evaluation"]
    assert [r["step"] for r in evaluations] == [10, 20, 30]
    assert [r["step"] for r in result.history if r["kind"] == "train"] == list(range(1, 31))
    worst = [r["worst"] for r in evaluations]
    assert result.best.step == evaluations[worst.index(max(worst))]["step"]
    assert result.best.metrics["worst"] == max(worst)
    assert result.last.step == 30 and result.last.metrics["worst"] == worst[-1]
    assert result.last.metrics["robust/fgsm"] <= result.last.metrics["clean"]
    assert evaluations[-1]["clean"] > 0.5  # it learns
    assert {"start", "step", "train", "evaluation", "checkpoint", "finished"} == {
        e.kind for e in events
    }


def test_the_run_folder_explains_itself(finished):
    result, _ = finished
    names = {p.name for p in result.run_dir.iterdir() if not p.name.startswith(".")}
    assert names == {
        "config.json", "versions.json", "metrics.jsonl", "events", "checkpoints", "experiment.py"
    }  # fmt: skip
    config = read_config(result.run_dir)
    assert config["config"] == {"steps": 30}
    assert config["training"]["network"] == {"name": "mlp", "fields": {"hidden": [16]}}
    assert config["training"]["attacks"]["fgsm"]["ball"]["eps"] == pytest.approx(0.05)
    versions = json.loads((result.run_dir / "versions.json").read_text())
    assert versions["packages"]["jax"] == jax.__version__
    assert tuple(read_rows(result.run_dir)) == result.history
    assert any((result.run_dir / "events").iterdir())
    position = json.loads(
        (result.run_dir / "checkpoints" / "30" / "position" / "metadata").read_text()
    )["position"]
    assert (position["step"], position["epoch"], position["offset"]) == (30, 1, 640)


def test_a_finished_run_is_returned_without_training(finished, tmp_path):
    result, _ = finished
    folder = shutil.copytree(result.run_dir, tmp_path / "run")
    events = []
    again = fit(
        digits_training(), folder, config={"steps": 30}, devices=one_device(),
        progress=events.append,
    )  # fmt: skip
    assert again.was_finished and not result.was_finished
    assert not [e for e in events if e.kind in ("step", "evaluation", "checkpoint")]
    assert "before this call" in events[-1].text
    assert same(again.last.model, result.last.model) and same(again.best.model, result.best.model)
    assert again.history == result.history


def test_another_run_in_the_same_folder_is_refused_by_the_fields_that_differ(finished):
    result, _ = finished
    stronger = {"fgsm": FGSM(ball=Linf(eps=0.1))}
    with pytest.raises(RunError) as error:
        fit(
            digits_training(
                batch_size=32, optimizer=optax.adam(2e-2), attacks=stronger
            ),
            result.run_dir, config={"steps": 30}, devices=one_device(),
        )  # fmt: skip
    message = str(error.value)
    assert "\n" not in message
    assert "batch_size: the run has 64, given 32" in message
    assert "attacks.fgsm.ball.eps: the run has 0.05" in message
    assert "optimizer.value:" in message and "seed" not in message


def test_overwrite_starts_anew_and_leaves_other_files_alone(finished, tmp_path):
    result, _ = finished
    folder = shutil.copytree(result.run_dir, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    fresh = fit(digits_training(steps=2, attacks={}), folder, overwrite=True, devices=one_device())
    assert fresh.last.step == 2 and steps_in(folder / "checkpoints") == [2]
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_run_that_is_going_on_is_not_joined(tmp_path):
    training = digits_training(steps=1, **UNTESTED)

    def again(event):
        if event.kind == "start":
            with pytest.raises(RunError, match="is being trained by another process"):
                fit(training, tmp_path / "run", devices=one_device())
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(training, tmp_path / "run", devices=one_device(), progress=again)
    assert fit(training, tmp_path / "run", devices=one_device()).last.step == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not empty: it holds thesis.tex"):
        fit(digits_training(), tmp_path, devices=one_device(), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_divergence_stops_at_its_step_and_is_not_saved(tmp_path):
    """A learning rate that is infinite from step 13 on: step 14's loss is the first bad one."""
    rate = lambda step: jnp.where(step >= 12, jnp.inf, 0.01)
    with pytest.raises(DivergedError, match="^step 14: .* is nan, training stops here$") as error:
        fit(
            digits_training(optimizer=optax.sgd(rate), attacks={}), tmp_path / "run",
            devices=one_device(),
        )  # fmt: skip
    assert error.value.step == 14
    assert steps_in(tmp_path / "run" / "checkpoints") == [10]
    assert read_rows(tmp_path / "run")[-1]["step"] == 13


def test_a_loss_above_its_limit_is_divergence(tmp_path):
    with pytest.raises(DivergedError, match="^step 1: loss is [0-9.]+, above the limit of 0.1$"):
        fit(digits_training(loss_limit=0.1, **UNTESTED), devices=one_device())


def test_infinite_parameters_are_not_saved(tmp_path):
    """The last update overflows after a good loss and gradient."""
    rate = lambda step: jnp.where(step == 9, jnp.inf, 0.01)
    with pytest.raises(DivergedError, match=r"^step 10: parameters\[.*is"):
        fit(
            digits_training(optimizer=optax.sgd(rate), steps=10, **UNTESTED), tmp_path / "run",
            devices=one_device(),
        )  # fmt: skip
    assert steps_in(tmp_path / "run" / "checkpoints") == []


def test_a_loaded_classifier_gives_the_same_logits(finished):
    result, _ = finished
    x = jnp.asarray(load("digits", "test").x[:16], jnp.float32) / 255
    for which in ("best", "last"):
        model = load_classifier(result.run_dir, which)
        expected = getattr(result, which).model
        assert np.asarray(model(x)).tobytes() == np.asarray(expected(x)).tobytes()
    assert same(load_classifier(result.run_dir, 30), result.last.model)


class Mine(nn.Module):
    """A user's module without a train flag."""

    width: int = 6

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1))))


def test_a_users_module_trains_and_loads_when_it_is_given(tmp_path):
    training = digits_training(
        module=Mine(), steps=3, ema_decay=0.5,
        objective=Madry(attack=FGSM(ball=Linf(eps=0.05), best=False)), attacks={},
    )  # fmt: skip
    result = fit(training, tmp_path / "run", devices=one_device())
    with pytest.raises(RunError, match="not of the zoo .*Mine.*module="):
        load_classifier(tmp_path / "run")
    assert same(load_classifier(tmp_path / "run", module=Mine()), result.last.model)
    with pytest.raises(CheckpointError, match=r"is given as float32\[.*\], expected float32\[7"):
        load_classifier(tmp_path / "run", module=Mine(width=7))


def test_a_plain_apply_trains(tmp_path):
    params = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    training = digits_training(module=None, apply=linear, params=params, steps=10, attacks={})
    result = fit(training, tmp_path / "run", devices=one_device())
    assert result.last.metrics["clean"] > 0.5
    assert not np.asarray(params["w"]).any()  # the caller's arrays are not donated
    assert fit(training, tmp_path / "run", devices=one_device()).was_finished


def linear(params, stats, x, *, key=None, train=False):
    del key, train
    return x.reshape(x.shape[0], -1) @ params["w"] + params["b"][None], stats


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(epochs=1), "given epochs=1, steps=30; expected exactly one"),
        (dict(batch_size=0), "batch_size=0; expected a whole number of at least 1"),
        (dict(batch_size=2000), "batch_size=2000; the training set has 1297"),
        (dict(ema_decay=1.0), "ema_decay=1.0; expected 0 <= ema_decay < 1"),
        (dict(module=None), "expected a module or apply with params"),
        (dict(module=None, apply=linear), "apply was given without params"),
        (dict(test=None), "attacks were given without test or validation images"),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        digits_training(**changes)


def test_create_is_what_config_json_names(finished):
    result, _ = finished
    network = read_config(result.run_dir)["training"]["network"]
    assert create(network["name"], **network["fields"]) == result.last.model.module
