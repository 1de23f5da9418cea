"""Runs that end before their last step, and averages over their last epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import digits_training, flat_linear, one_device, random_data

from advjax.attacks import FGSM, PGD
from advjax.balls import Linf
from advjax.runs import EqualAverage
from advjax.runs.checkpoint import named, read, steps_in
from advjax.training import fit, load_classifier

PARAMS = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
# Learns for 20 steps, then unlearns.
BACK = lambda step: jnp.where(step < 20, 1.0, -1.0)
ATTACKS = {"fgsm": FGSM(ball=Linf(eps=0.02))}


def training(**changes):
    fields = dict(
        module=None, apply=flat_linear, params=PARAMS, optimizer=optax.sgd(BACK), steps=80,
        attacks=ATTACKS, validation=0.2, patience=2,
    )  # fmt: skip
    return digits_training(**{**fields, **changes})


def evaluations(result):
    return [r for r in result.history if r["kind"] == "evaluation"]


def weights(result):
    return [
        np.asarray(v).tobytes() for v in jax.tree.leaves((result.best.model, result.last.model))
    ]


def test_a_run_stops_when_validation_gets_no_better(tmp_path):
    events = []
    result = fit(training(), tmp_path / "run", devices=one_device(), progress=events.append)
    rows = evaluations(result)
    robust = [r["validation/worst"] for r in rows]
    assert result.best.step == rows[int(np.argmax(robust))]["step"] < result.last.step < 80
    assert result.last.step == result.best.step + 2 * 10
    assert result.stopped == (
        f"early stopping: no better evaluation since step {result.best.step} "
        f"({100 * max(robust):.1f} %)"
    )
    assert [e.text for e in events if e.kind == "stopped"] == [result.stopped]
    # Both sets are measured; the test set decides nothing.
    assert {"clean", "robust/fgsm", "worst", "validation/clean"} <= rows[0].keys()
    assert result.best.score == max(robust)
    again = fit(training(), tmp_path / "run", devices=one_device())
    assert again.was_finished and again.stopped == result.stopped
    assert weights(again) == weights(result) and again.history == result.history
    kept = steps_in(tmp_path / "run" / "checkpoints")
    assert kept[-1] == result.last.step and result.best.step in kept


def test_patience_survives_being_killed(tmp_path):
    class Kill(Exception):
        pass

    def kill(event):
        if event.kind == "step" and event.step == 35:
            raise Kill

    whole = fit(training(), devices=one_device())
    assert whole.last.step > 35
    with pytest.raises(Kill):
        fit(training(), tmp_path / "run", devices=one_device(), progress=kill)
    resumed = fit(training(), tmp_path / "run", devices=one_device())
    assert weights(resumed) == weights(whole) and resumed.stopped == whole.stopped


def test_a_run_stops_when_it_is_told_to_and_stays_stopped(tmp_path):
    seen = []

    def stop(rows):
        seen.append(rows[-1]["step"])
        return "told to" if rows[-1]["clean"] > 0 and rows[-1]["step"] == 20 else None

    idle = dict(patience=None, steps=40)
    result = fit(training(**idle), tmp_path / "run", devices=one_device(), stop_when=stop)
    assert seen == [10, 20] and (result.stopped, result.last.step) == ("told to", 20)
    again = fit(training(**idle), tmp_path / "run", devices=one_device())
    assert again.was_finished and again.stopped == "told to"
    seen.clear()
    fit(training(**idle), devices=one_device(), stop_when=lambda rows: seen.append(len(rows)))
    assert len(seen) == 3, "not asked at the last step"


def test_the_best_is_the_best_on_validation_images_whatever_the_test_set_says():
    """Test images whose labels are all wrong are best at the worst step."""
    honest = training(patience=None, steps=40)
    test = honest.test
    wrong = type(test)(x=test.x, y=(test.y + 1) % 10, classes=test.classes)
    result = fit(training(patience=None, steps=40, test=wrong), devices=one_device())
    rows = evaluations(result)
    by = lambda name: max(rows, key=lambda r: r[name])["step"]
    assert result.best.step == by("validation/worst") != by("worst")
    assert result.stopped is None and result.last.step == 40


def overfitting(**changes):
    """Epochs of 20 steps: learns in two of them, then unlearns."""
    fields = dict(
        optimizer=optax.sgd(lambda step: jnp.where(step < 40, 1.0, -1.0)), steps=100, patience=None,
        validation=None, test=None, attacks={},
        watch=PGD(ball=Linf(eps=0.02), steps=5, step_size=0.005),
    )  # fmt: skip
    return training(**{**fields, **changes})


def test_catastrophic_overfitting_ends_the_run_with_the_model_before_it(tmp_path):
    events = []
    result = fit(overfitting(), tmp_path / "run", devices=one_device(), progress=events.append)
    rows = [r for r in result.history if r["kind"] == "watch"]
    found = [r["watched_accuracy"] for r in rows]
    assert [r["step"] for r in rows] == [20, 40, 60]
    assert result.last.step == 60 and result.best.step == 40
    assert found[1] - found[2] > 0.2 and abs(found[0] - found[1]) <= 0.2
    assert result.best.metrics == {"watched_accuracy": found[1]}
    assert result.stopped == (
        f"catastrophic overfitting: accuracy under the watch fell from {100 * found[1]:.1f} "
        f"to {100 * found[2]:.1f} % in one epoch"
    )
    assert [e.text for e in events if e.kind == "stopped"] == [result.stopped]
    again = fit(overfitting(), tmp_path / "run", devices=one_device())
    assert again.was_finished and weights(again) == weights(result)
    assert again.best.step == 40 and again.stopped == result.stopped


def test_the_equal_average_is_the_mean_of_the_epochs_ends():
    """Before its first epoch it is the parameters themselves."""
    value = lambda step: {"w": jnp.asarray([step, -2.0 * step]), "n": jnp.int32(step)}
    average, seen, follow = value(0), {}, EqualAverage(start=4, every=3)
    for step in range(12):  # this one makes value(step + 1)
        average = follow(average, value(step + 1), jnp.int32(step))
        seen[step + 1] = average
    ends = {1: 1, 3: 3, 4: 4, 6: 4, 7: (4 + 7) / 2, 9: (4 + 7) / 2, 10: 7, 12: 7}
    for made, expected in ends.items():
        np.testing.assert_allclose(seen[made]["w"], [expected, -2 * expected], rtol=1e-6)
        assert seen[made]["n"] == made  # what cannot be averaged follows


def test_a_run_with_an_equal_average_gives_and_loads_it(tmp_path):
    run = digits_training(steps=60, swa_start=1, attacks={}, evaluate_every=60)  # 20 an epoch
    result = fit(run, tmp_path / "run", devices=one_device())
    arrays, _ = read(tmp_path / "run" / "checkpoints", 60)
    loaded = load_classifier(tmp_path / "run", "last")
    for name, array in named(loaded.variables).items():
        assert np.asarray(array).tobytes() == arrays[f"ema/{name}"].tobytes()
        assert (np.asarray(array) != arrays[name]).any()
    leaves = lambda model: [np.asarray(v).tobytes() for v in jax.tree.leaves(model)]
    assert leaves(loaded) == leaves(result.last.model)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(validation=None), "patience=2 was given without validation images; early stopping"),
        (dict(patience=0), "patience=0; expected a whole number of at least 1"),
        (
            dict(validation=1.0),
            "validation=1.0 of 1297 training images; expected a share that leaves",
        ),
        (dict(validation=random_data(9)), r"validation images are \(4, 4, 1\), training images"),
        (dict(ema_decay=0.9, swa_start=1), "given ema_decay=0.9, swa_start=1; expected one"),
        (dict(watch_drop=2.0), "watch_drop=2.0; expected a share from 0 to 1"),
    ],
)
def test_endings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        training(**changes)
