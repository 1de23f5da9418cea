"""Optimisers and schedules by name are optax's, bit for bit, and tell what they are."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import digits_training, one_device

from advjax.spec import from_json, to_json
from advjax.training import RunError, fit, optimizer, read_config, schedule
from advjax.training.describe import describe_optimizer

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 5), "b": jnp.ones(2)}
UP, DOWN = optax.linear_schedule(0.0, 0.1, 3), optax.linear_schedule(0.1, 0.0, 7)
TRIANGLE = optax.join_schedules([UP, DOWN], [3])

# Every one that the experiments use, and further forms.
PAIRS = {
    "adam": (lambda: optimizer("adam", 1e-3), lambda: optax.adam(1e-3)),
    "adam_b1": (lambda: optimizer("adam", 1e-3, b1=0.5), lambda: optax.adam(1e-3, b1=0.5)),
    "in_state": (
        lambda: optimizer("adam", in_state=True, learning_rate=1e-3),
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    ),
    "triangular": (
        lambda: optimizer("adam", schedule("triangular", 0.1, 3, 10)),
        lambda: optax.adam(TRIANGLE),
    ),
    "join": (
        lambda: optimizer(
            "adam",
            schedule(
                "join", [schedule("linear", 0.0, 0.1, 3), schedule("linear", 0.1, 0.0, 7)], [3]
            ),
        ),
        lambda: optax.adam(TRIANGLE),
    ),
    "linear": (
        lambda: optimizer("adam", schedule("linear", 0.1, 0.0, 10)),
        lambda: optax.adam(optax.linear_schedule(0.1, 0.0, 10)),
    ),
    "cosine": (
        lambda: optimizer("adam", schedule("cosine_decay", 0.1, 10)),
        lambda: optax.adam(optax.cosine_decay_schedule(0.1, 10)),
    ),
    "warmup_cosine": (
        lambda: optimizer("adam", schedule("warmup_cosine_decay", 0.0, 0.1, 2, 10)),
        lambda: optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)),
    ),
    "chain": (
        lambda: optimizer(
            "chain",
            optimizer("clip_by_global_norm", 1.0),
            optimizer("add_decayed_weights", 5e-4),
            optimizer("sgd", schedule("piecewise_constant", 0.1, {4: 0.1, 6: 0.1}), momentum=0.9),
        ),
        lambda: optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.add_decayed_weights(5e-4),
            optax.sgd(optax.piecewise_constant_schedule(0.1, {4: 0.1, 6: 0.1}), momentum=0.9),
        ),
    ),
    "adamw": (lambda: optimizer("adamw", 1e-2), lambda: optax.adamw(1e-2)),
}


def after(optimiser, steps=8):
    params = PARAMS
    state = optimiser.init(params)
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
            updates, state = optimiser.update(jax.tree.map(jnp.sin, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_optaxs_to_the_bit_and_comes_back(name):
    named, raw = (make() for make in PAIRS[name])
    again = from_json(to_json(named))
    assert to_json(again) == to_json(named)
    found = [jax.tree.map(np.asarray, after(o)) for o in (named, raw, again)]
    for other in found[1:]:
        assert jax.tree.structure(other) == jax.tree.structure(found[0])
        assert all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True)
        )


def test_it_is_an_optax_transformation():
    both = optax.chain(optimizer("sgd", 0.1), optax.scale(2.0))
    assert isinstance(optimizer("sgd", 0.1), optax.GradientTransformation)
    updates, _ = both.update(PARAMS, both.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["w"], -0.2 * PARAMS["w"], rtol=1e-6)
    sgd = optimizer("sgd", 0.1)
    assert jax.tree.map(lambda leaf: leaf, {"a": sgd})["a"] is sgd and not jax.tree.leaves(sgd)
    assert copy.deepcopy(sgd).arguments == {"learning_rate": 0.1}
    assert repr(sgd) == "optimizer('sgd', learning_rate=0.1)"


def test_equal_schedules_are_one():
    """They are static fields of objectives, and equal ones are one trace."""
    a, b = (schedule("piecewise_constant", 1.0, {3: 0.1}) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a != schedule("piecewise_constant", 1.0, {4: 0.1})
    assert float(a(5)) == pytest.approx(0.1)
    assert repr(schedule("linear", 0.0, 1.0, 3)).startswith("schedule('linear', init_value=0.0")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: optimizer("adamm", 1e-3), "optax has no function 'adamm'; near ones: adam"),
        (lambda: optimizer("adam", learning_rat=1), "no argument 'learning_rat'.*learning_rate"),
        (lambda: optimizer("adam"), "optax.adam: missing a required argument: 'learning_rate'"),
        (lambda: optimizer("linear_schedule", 0.0, 1.0, 3), "linear_schedule is no optimiser"),
        (lambda: schedule("lineer", 0.0), "optax has no function 'lineer'; near ones: .*linear"),
        (lambda: schedule("adam", 1e-3), "optax.adam is no schedule"),
        (lambda: schedule("linear", end=1.0), "optax.linear_schedule has no argument 'end'.*end_v"),
    ],
)
def test_wrong_names_are_answered_with_near_ones(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_raw_ones_are_known_by_their_program():
    told = [describe_optimizer(optax.adam(rate), PARAMS) for rate in (0.1, 0.1, 0.2)]
    assert told[0] == told[1] != told[2]
    assert told[0]["value"].startswith("an optax transformation of program sha256:")
    mixed = optimizer("chain", optax.scale(0.1), optimizer("sgd", 0.1))
    assert describe_optimizer(mixed, PARAMS)["value"].startswith("an optax transformation of")


def test_a_run_tells_its_optimiser(tmp_path):
    plain = {"test": None, "attacks": {}, "steps": 2}
    training = digits_training(optimizer=optimizer("adam", 1e-2), **plain)
    fit(training, tmp_path / "run", devices=one_device())
    said = read_config(tmp_path / "run")["training"]
    assert said["spec"] == 1 and from_json(said["optimizer"]).name == "adam"
    assert from_json(said["objective"]).label_smoothing == 0
    other = digits_training(optimizer=optimizer("adam", 2e-2), **plain)
    with pytest.raises(
        RunError, match="optimizer.arguments.learning_rate: the run has 0.01, given"
    ):
        fit(other, tmp_path / "run", devices=one_device())
    fit(training, tmp_path / "run", devices=one_device())


def test_a_run_of_an_older_version_is_refused_and_still_read(tmp_path):
    training = digits_training(steps=2, test=None, attacks={})
    fit(training, tmp_path / "run", devices=one_device())
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"spec": 1,', ""))
    with pytest.raises(RunError, match="begun by another version of advjax.*overwrite it"):
        fit(training, tmp_path / "run", devices=one_device())
    assert read_config(tmp_path / "run")["training"]["classes"]
