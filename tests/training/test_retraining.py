"""Iterative retraining: what is counted and added, each way to stop, and going on after a kill."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from small_runs import flat_linear, one_device

from advjax.attacks import FGSM, Lattice, Transferred
from advjax.balls import L2
from advjax.data import Dataset, to_float
from advjax.training import RunError, Standard, Training
from advjax.training.apply import Bound
from advjax.training.retraining import retrain

EPS = 0.2
ATTACK = FGSM(ball=L2(eps=EPS))  # no image comes near the edge of the box
RNG = np.random.default_rng(0)
Y = np.arange(48) % 2
SIGN = np.where(np.arange(16) < 8, 1, -1) * (2 * Y[:, None] - 1)
X = (128 + 16 * SIGN + RNG.integers(-40, 40, (48, 16))).astype(np.uint8).reshape(48, 4, 4, 1)
DATA = Dataset(X[:32], Y[:32])
HELD = Dataset(X[32:], Y[32:], split="validation")
PARAMS = {"w": np.zeros((16, 2), np.float32), "b": np.zeros(2, np.float32)}


def training(**changes):
    fields = dict(
        apply=flat_linear,
        params=PARAMS,
        objective=Standard(),
        optimizer=optax.adam(0.05),
        train=DATA,
        steps=30,
        batch_size=16,
    )
    return Training(**{**fields, **changes})


def run(attack=ATTACK, *args, spec=None, **settings):
    spec = training() if spec is None else spec
    return retrain(spec, attack, *args, devices=one_device(), **settings)


@pytest.fixture(scope="module")
def three():
    return run(rounds=3, held_out=HELD)


def by_hand(model, data):
    """FGSM in L2 on two linear classes: its images, whether each was wrong before, and is."""
    w, b = np.asarray(model.params["w"]), np.asarray(model.params["b"])
    other = w[:, 1 - data.y].T - w[:, data.y].T
    x = np.asarray(to_float(data.x)).reshape(len(data), -1)
    x_adv = x + EPS * other / np.linalg.norm(other, axis=1, keepdims=True)
    wrong = lambda x: (x @ w + b[None]).argmax(axis=1) != data.y
    return x_adv, wrong(x), wrong(x_adv)


def test_every_round_counts_and_adds_what_evades(three):
    expected, labels = np.asarray(to_float(DATA.x)).reshape(32, -1), DATA.y
    for i, each in enumerate(three.rounds):
        x_adv, before, after = by_hand(each.snapshot.model, DATA)
        fooled = after & ~before
        assert each.clean.correct == 32 - before.sum()
        assert each.evasion.correct == (after | before).sum() and each.evasion.total == 32
        assert each.new == fooled.sum() > 0
        assert each.examples == len(expected)
        if i < 2:
            expected = np.concatenate([expected, x_adv[fooled]])
            labels = np.concatenate([labels, DATA.y[fooled]])
    assert (len(three.rounds), three.stopped) == (3, "round limit")
    assert three.model is three.rounds[-1].snapshot.model
    assert three.train.x.dtype == np.float32
    np.testing.assert_allclose(three.train.x.reshape(len(labels), -1), expected, atol=1e-6)
    np.testing.assert_array_equal(three.train.y, labels)
    at = three.train.ids[32:]  # added images keep the numbers of their originals
    np.testing.assert_array_equal(DATA.y[at], labels[32:])


def test_the_share_of_changed_predictions_is_counted_on_the_held_out_images(three):
    x = np.asarray(to_float(HELD.x)).reshape(len(HELD), -1)
    models = [each.snapshot.model.params for each in three.rounds]
    said = [(x @ np.asarray(p["w"]) + np.asarray(p["b"])).argmax(axis=1) for p in models]
    expected = [None, *(np.mean(a != b) for a, b in zip(said, said[1:], strict=False))]
    assert [each.changed for each in three.rounds] == expected
    found = run(change=1.0, held_out=HELD)
    assert (len(found.rounds), found.stopped) == (2, "little change")


def test_it_stops_when_the_attack_finds_nothing_new(three):
    found = run(FGSM(ball=L2(eps=0.0)))
    assert (len(found.rounds), found.stopped, found.train) == (1, "no new instances", DATA)
    first = three.rounds[0]
    found = run(new=first.new / 32)
    assert (len(found.rounds), found.stopped) == (1, "no new instances")
    # The same images every time, although some still evade, are no new ones.
    direction = np.where(np.arange(16) < 8, 1.0, -1.0).astype(np.float32)
    params = {**PARAMS, "w": np.stack([-direction, direction], axis=1)}
    source = Bound(params=params, stats={}, apply=flat_linear)
    found = run(Transferred(ATTACK, source=source))
    assert found.stopped == "no new instances" and len(found.rounds) > 1
    last = found.rounds[-1]
    assert last.evasion.correct > 32 - last.clean.correct and last.new == 0


def test_only_the_malicious_are_attacked_and_bytes_stay_bytes_on_the_lattice(three):
    mask = DATA.y == 1
    found = run(Lattice(ATTACK), rounds=2, malicious=mask)
    assert found.rounds[0].evasion.total == mask.sum()
    assert found.train.x.dtype == np.uint8
    np.testing.assert_array_equal(found.train.x[:32], DATA.x)
    assert len(found.train) > 32 and (found.train.y[32:] == 1).all()
    change = (found.train.x[32:].astype(int) - DATA.x[found.train.ids[32:]]).reshape(-1, 16)
    sizes = np.linalg.norm(change, axis=1) / 255
    assert sizes.min() > 0.95 * EPS and sizes.max() < EPS + 1e-5


def test_a_warm_start_goes_on_from_the_last_parameters(three):
    params = three.model.params
    adds = optax.stateless(lambda updates, _: jax.tree.map(lambda u, p: p + 0 * u, updates, params))
    found = run(spec=training(steps=1, optimizer=adds), rounds=2, warm=True)
    for name, value in params.items():
        np.testing.assert_array_equal(found.rounds[0].snapshot.model.params[name], value)
        np.testing.assert_array_equal(found.model.params[name], 2 * value)


def test_a_run_killed_twice_goes_on_to_the_same_bits(tmp_path, three):
    """In the training of the second round, and after its attack."""
    again = lambda **settings: run(ATTACK, tmp_path, rounds=3, held_out=HELD, **settings)

    def in_training(event):
        if (tmp_path / "round-01").exists() and (event.kind, event.step) == ("step", 20):
            raise KeyboardInterrupt

    def after_attack(event):
        if event.text.startswith("round-01") and event.text.endswith("anew"):
            raise KeyboardInterrupt

    for kill in (in_training, after_attack):
        with pytest.raises(KeyboardInterrupt):
            again(progress=kill)
        assert (tmp_path / "round-01.npz").exists() == (kill is after_attack)
    events = []
    found = again(progress=events.append)
    steps = [event.step for event in events if event.kind == "step"]
    assert steps == list(range(1, 31))  # the third round's alone
    told = lambda round: dataclasses.replace(round, snapshot=None)
    assert [told(r) for r in found.rounds] == [told(r) for r in three.rounds]
    assert found.train.x.tobytes() == three.train.x.tobytes()
    for name, value in three.model.params.items():
        assert np.asarray(found.model.params[name]).tobytes() == np.asarray(value).tobytes()
    with pytest.raises(RunError, match="eps"):  # another attack is another run
        run(FGSM(ball=L2(eps=0.1)), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds=0; expected a whole number >= 1"),
        ({"new": 1.5}, "new=1.5; expected a share"),
        ({"change": 0.1}, "change=0.1 without held-out images"),
        ({"malicious": [0, 32]}, r"from 0 to 31, or a mask \[32\]"),
        ({"malicious": np.zeros(32, bool)}, "at least one position"),
        ({"malicious": np.ones(5, bool)}, r"malicious=bool\[5\]"),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings)


def test_what_cannot_be_retrained_is_refused():
    with pytest.raises(TypeError, match="attack=str; expected an advjax attack"):
        run("fgsm")
    neighbours = (np.zeros((32, 1), int), np.ones((32, 1), np.float32))
    with pytest.raises(ValueError, match="neighbours"):
        run(spec=training(neighbours=neighbours))
