"""Substitutes: what the oracle is asked, what is trained, and attacks that transfer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax import (
    FGSM,
    L0,
    L2,
    PGD,
    Linf,
    Targeted,
    WorstOf,
    evaluate,
    example_keys,
    load,
    pytree,
    random_target,
    replace,
)
from advjax.attacks import substitute as module
from advjax.attacks.core.oracle import Labels
from advjax.attacks.substitute import Perceptron, train_substitute
from advjax.attacks.transferred import Transferred, quantised
from advjax.data import to_float

BALL = Linf(0.2)


class Asked:
    """A linear oracle on the host that keeps what it was asked; nothing but classes leaves it."""

    def __init__(self, features=12, classes=3):
        self.weights = np.random.default_rng(5).normal(size=(features, classes))
        self.weights -= self.weights.mean(0)  # so that images in [0, 1] fall into all classes
        self.images = []

    def __call__(self, x):
        self.images.append(np.array(x))
        return np.argmax(np.asarray(x).reshape(len(x), -1) @ self.weights, axis=1)


def seeds(n=10, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, 2, 3, 2)).astype(np.float32)


@pytest.fixture
def untrained(monkeypatch):
    """Leaves out the training, where a test is about what is asked."""
    monkeypatch.setattr(module, "_train", lambda model, *rest: (model, 0.0))


def small(oracle, x, key, **settings):
    start = Perceptron.init(jax.random.key(7), 12, 3, (8,))
    settings = {"substitute": start, "epochs": 2, "batch_size": 16, **settings}
    return train_substitute(oracle, x, key=key, classes=3, **settings)


def test_every_label_is_counted_and_asked_for_once(key, untrained):
    oracle = Asked()
    found = small(oracle, seeds(), key, rounds=4)
    assert found.queries == (10, 10, 20, 40, 80) and len(found.agreement) == 5
    asked = np.concatenate(oracle.images)
    assert len(asked) == len(found.x) == len(found.y) == sum(found.queries) == 160
    np.testing.assert_array_equal(asked, found.x)
    np.testing.assert_array_equal(found.x[:10], seeds())
    np.testing.assert_array_equal(found.y, oracle(found.x))


@pytest.mark.parametrize(
    ("settings", "queries"),
    [
        ({"rounds": 0}, (10,)),
        ({"rounds": 5, "max_queries": 100}, (10, 10, 20, 40, 20)),
        ({"rounds": 3, "max_queries": 10}, (10,)),
        ({"rounds": 5, "reservoir": 15, "reservoir_from": 2}, (10, 10, 20, 15, 15, 15)),
        ({"rounds": 3, "reservoir": 7, "reservoir_from": 0, "max_queries": 30}, (10, 7, 7, 6)),
    ],
)
def test_the_plan_keeps_to_its_limits(settings, queries, key, untrained):
    oracle = Asked()
    found = small(oracle, seeds(), key, **settings)
    assert found.queries == queries
    assert sum(map(len, oracle.images)) == sum(queries) == len(found.y)


def test_the_papers_setting_is_9600_queries(untrained):
    class Counts(Asked):
        def __call__(self, x):
            self.images.append(len(x))
            return np.zeros(len(x), np.int32)

    oracle = Counts()
    key = jax.random.key(0)
    tiny = Perceptron.init(key, 12, 3, ())
    x = seeds(150)
    found = train_substitute(oracle, x, key=key, classes=3, substitute=tiny, epochs=0)
    assert found.queries == (150, 150, 300, 600, 1200, 2400, 4800)
    assert sum(oracle.images) == 9600


def test_augmentation_follows_the_oracles_class_and_turns_around(key, untrained):
    """Without training the substitute stays linear: each new image is known in closed form."""
    linear = Perceptron.init(jax.random.key(3), 12, 3, ())
    slope = np.sign(np.asarray(linear.weights[0])).T.reshape(3, 2, 3, 2)
    settings = {"substitute": linear, "step_size": 0.05, "period": 2, "rounds": 5}
    found = small(Asked(), seeds(), key, **settings)
    known = 10
    for sign in (1, 1, -1, -1, 1):
        x, y = found.x[:known], found.y[:known]
        expected = np.clip(x + np.float32(sign * 0.05) * slope[y], 0, 1)
        np.testing.assert_allclose(found.x[known : 2 * known], expected, atol=1e-6)
        known *= 2


def test_a_reservoir_draws_without_replacement_from_all_that_is_known(key, untrained):
    linear = Perceptron.init(jax.random.key(3), 12, 3, ())
    slope = np.sign(np.asarray(linear.weights[0])).T.reshape(3, 2, 3, 2)
    settings = {"substitute": linear, "step_size": 0.05, "rounds": 2, "reservoir": 13}
    found = small(Asked(), seeds(), key, reservoir_from=1, **settings)
    possible = np.clip(found.x[:20] + np.float32(0.05) * slope[found.y[:20]], 0, 1)
    gaps = np.abs(found.x[20:, None] - possible).max((2, 3, 4))
    parents = gaps.argmin(1)
    assert (gaps.min(1) < 1e-6).all() and len(set(parents)) == 13 and (parents >= 10).any()


def test_growing_sets_are_one_trace_of_the_training(key):
    traces = []

    @pytree
    class Counted:
        weights: jax.Array

        def __call__(self, x):
            traces.append(x.shape[0])
            return x.reshape(x.shape[0], -1) @ self.weights

    start = Counted(weights=jnp.zeros((12, 3)))
    small(Asked(), seeds(), key, substitute=start, rounds=1, max_queries=80)
    before = len(traces)
    small(Asked(), seeds(), key, substitute=start, rounds=3)
    assert len(traces) - before <= before  # another capacity, yet not once per round


def test_training_is_the_optimisers_on_the_examples_asked_for_alone(key):
    """One epoch of one full batch is one step of gradient descent on the mean loss."""
    x = seeds(6)
    linear = Perceptron.init(jax.random.key(3), 12, 3, ())
    settings = {"substitute": linear, "epochs": 1, "batch_size": 64, "rounds": 1}
    rounds = []
    oracle = Asked()
    small(oracle, x, key, optimizer=optax.sgd(0.5), on_round=rounds.append, **settings)
    assert [len(found.y) for found in rounds] == [6, 12]
    weights, bias = (np.asarray(v[0], np.float64) for v in (linear.weights, linear.biases))
    for found in rounds:
        flat = found.x.reshape(len(found.x), -1)
        share = np.asarray(jax.nn.softmax(flat @ weights + bias[None])) - np.eye(3)[found.y]
        weights, bias = weights - 0.5 * flat.T @ share / len(flat), bias - 0.5 * share.mean(0)
        np.testing.assert_allclose(found.model.weights[0], weights, atol=1e-5)
        np.testing.assert_allclose(found.model.biases[0], bias, atol=1e-5)
        right = np.argmax(flat @ weights + bias[None], 1) == found.y
        assert found.agreement[-1] == pytest.approx(right.mean())


def test_the_same_key_gives_the_same_substitute(key):
    one, two = (small(Asked(), seeds(), key, rounds=2) for _ in range(2))
    np.testing.assert_array_equal(one.x, two.x)
    for a, b in zip(jax.tree.leaves(one.model), jax.tree.leaves(two.model), strict=True):
        np.testing.assert_array_equal(a, b)
    other = small(Asked(), seeds(), jax.random.key(1), rounds=2)
    assert (other.model.weights[0] != one.model.weights[0]).any()


@pytest.mark.parametrize(
    ("oracle", "settings", "error", "said"),
    [
        (lambda x: np.zeros((len(x), 3)), {}, ValueError, "Labels"),
        (lambda x: np.zeros(len(x)), {}, TypeError, "integers"),
        (lambda x: np.full(len(x), 3), {}, ValueError, "0 to 2"),
        (Asked(), {"max_queries": 9}, ValueError, "max_queries=9"),
        (Asked(), {"rounds": -1}, ValueError, "rounds=-1"),
        (Asked(), {"period": 0}, ValueError, "period=0"),
        (Asked(), {"reservoir": 0}, ValueError, "reservoir=0"),
        (Asked(), {"box": (0.0, 0.5)}, ValueError, "0 to 0.5"),
        (Asked(), {"substitute": Perceptron.init(jax.random.key(0), 12, 4, ())}, ValueError, "3"),
    ],
)
def test_what_cannot_work_is_refused(oracle, settings, error, said, key):
    with pytest.raises(error, match=said):
        small(oracle, seeds(), key, **settings)


def test_a_substitute_learns_the_digits_from_labels_and_its_images_transfer(key):
    train, test = load("digits", "train"), load("digits", "test")
    own = Perceptron.init(jax.random.key(1), 64, 10, (32,))
    settings = {"key": key, "classes": 10, "substitute": own}
    x = np.asarray(to_float(train.x))
    known = train_substitute(lambda _: train.y, x, rounds=0, epochs=60, **settings)
    oracle, first = known.model, test.subset(100)
    rest = test.take(~np.isin(test.ids, first.ids))
    found = train_substitute(
        Labels(oracle), np.asarray(to_float(first.x)), rounds=3, epochs=40, **settings
    )
    assert sum(found.queries) == 800
    right = lambda model: np.mean(np.argmax(model(to_float(rest.x)), 1) == rest.y)
    assert right(oracle) > 0.9 and right(found.model) > 0.75
    fgsm = FGSM(ball=Linf(0.3))
    noise = PGD(ball=Linf(0.3), steps=0)
    attacks = {
        "transferred": Transferred(fgsm, source=found.model, levels=256),
        "noise": Transferred(noise, source=found.model),
    }
    robust = evaluate(oracle, rest, attacks, key=key, devices=jax.devices()[:1]).robust
    # Noise of the same size does no such harm: the direction is what transfers.
    assert robust["transferred"].value < 0.3 and robust["noise"].value > 0.6


# Transferred


@pytest.fixture
def source(tiny):
    """A linear model near ``tiny``'s, but not it."""
    model, weights, _, _ = tiny
    drift = np.random.default_rng(8).normal(size=weights.shape)
    return jax.tree_util.Partial(model.func, weights + np.float32(0.5) * np.float32(drift))


def test_it_crafts_on_the_source_and_judges_on_the_target(tiny, source, key):
    model, _, x, y = tiny
    plain = PGD(ball=Linf(0.05), steps=4)
    there = plain.run(key, source, x, y)
    record = Transferred(plain, source=source).run(key, model, x, y)
    np.testing.assert_array_equal(record.x_adv, there.x_adv)
    fooled = np.argmax(model(there.x_adv), 1) != y
    np.testing.assert_array_equal(record.success, fooled)
    assert (fooled != there.success).any() and fooled.any() and not fooled.all()
    np.testing.assert_array_equal(record.forwards, there.forwards + 1)
    np.testing.assert_array_equal(record.backwards, there.backwards)
    np.testing.assert_allclose(record.distance, there.distance)
    assert ((record.first_success >= 0) == fooled).all()
    assert (record.loss > 0).all()


@pytest.mark.parametrize(("ball", "levels"), [(BALL, None), (BALL, 5), (L2(0.6), 256), (L0(3), 5)])
def test_it_keeps_what_every_attack_promises(ball, levels, tiny, source, key):
    model, _, x, y = tiny
    attack = Transferred(PGD(ball=ball, steps=2), source=source, levels=levels)
    record = attack.run(key, model, x, y)
    assert record.x_adv.min() >= 0 and record.x_adv.max() <= 1
    assert (ball.size(record.x_adv - x) <= ball.eps + 1e-5).all()
    np.testing.assert_allclose(record.distance, ball.size(record.x_adv - x), atol=1e-5)
    np.testing.assert_array_equal(record.success, np.argmax(model(record.x_adv), 1) != y)
    np.testing.assert_array_equal(record.x_adv, attack(key, model, x, y))
    order = np.array([4, 0, 5, 2, 1, 3])
    other = attack.run(example_keys(key, 8)[order], model, x[order], y[order])
    np.testing.assert_allclose(record.x_adv[order], other.x_adv, atol=1e-6)
    np.testing.assert_array_equal(record.success[order], other.success)


def test_under_jit_it_is_the_same(tiny, source, key):
    model, _, x, y = tiny
    attack = Transferred(PGD(ball=BALL, steps=3), source=source, levels=256)
    record = attack.run(key, model, x, y)
    jitted = jax.jit(lambda attack, model, x: attack.run(key, model, x, y))(attack, model, x)
    np.testing.assert_allclose(record.x_adv, jitted.x_adv, atol=1e-6)
    np.testing.assert_array_equal(record.success, jitted.success)


def test_budgets_sources_and_targets_are_one_trace(tiny, source, traces, key):
    model, weights, x, y = tiny
    attack = Transferred(PGD(ball=BALL, steps=3), source=source)
    for i in range(3):
        again = jax.tree_util.Partial(model.func, weights * (1 + i))
        attack = replace(attack.scaled(1 + i), source=again)
        attack.run(key, again, x, y)
        if i == 0:
            before = len(traces)
    assert len(traces) == before


def test_targets_are_aimed_at_on_the_source_and_judged_on_the_target(tiny, source, key):
    model, _, x, y = tiny
    target = (y + 1) % 5
    aimed = Targeted(Transferred(PGD(ball=Linf(0.5), steps=5), source=source))
    record = aimed.run(key, model, x, target)
    np.testing.assert_array_equal(record.success, np.argmax(model(record.x_adv), 1) == target)
    inner = Transferred(Targeted(PGD(ball=Linf(0.5), steps=5)), source=source)
    np.testing.assert_array_equal(inner.run(key, model, x, target).success, record.success)
    assert record.success.any()
    with pytest.raises(ValueError, match="Targeted"):
        Transferred(Targeted(FGSM(ball=BALL), choose=random_target), source=source)


def test_wrong_parts_are_refused(tiny, key):
    model, _, x, y = tiny
    two = jax.tree_util.Partial(model.func, jnp.ones((24, 2)))
    with pytest.raises(ValueError, match="source has 2 classes"):
        Transferred(FGSM(ball=BALL), source=two)(key, model, x, y)
    with pytest.raises(TypeError, match="attack"):
        Transferred("fgsm", source=model)
    with pytest.raises(ValueError, match="levels"):
        Transferred(FGSM(ball=BALL), source=model, levels=1)


def test_an_evaluation_takes_it_and_its_worst_case(tiny, source, key):
    model, _, x, y = tiny
    fgsm = FGSM(ball=BALL)
    both = WorstOf(attacks=(Transferred(fgsm, source=source), Transferred(fgsm, source=model)))
    data, one = (np.asarray(x), np.asarray(y)), jax.devices()[:1]
    found = evaluate(model, data, {"both": both}, key=key, devices=one)
    own = fgsm.run(key, model, x, y).success
    assert own.any() and (found.attacks["both"].success >= own).all()
    assert not found.attacks["both"].invalid.any()


def test_quantised_images_are_bytes_and_never_further_away():
    rng = np.random.default_rng(0)
    grid = np.asarray(to_float(rng.integers(0, 256, (50, 9), dtype=np.uint8)))
    for x in (grid, rng.uniform(size=(50, 9)).astype(np.float32)):
        scale = rng.choice([1e-3, 0.01, 0.3], (50, 1))
        x_adv = np.clip(x + scale * rng.normal(size=x.shape), 0, 1).astype(np.float32)
        x_adv[:, :2] = x[:, :2]
        out = np.asarray(quantised(x, x_adv, 256))
        np.testing.assert_array_equal(out[:, :2], x[:, :2])
        assert (np.abs(out - x) <= np.abs(x_adv - x) + 1e-5).all()
        assert (np.abs(out - x_adv) <= 1.01 / 255).all()
        on_grid = np.abs(out * 255 - np.round(out * 255)) < 1e-3
        assert (on_grid | (out == x)).all()
        assert (out != x).any()
    as_bytes = np.round(np.asarray(quantised(grid, x_adv, 256)) * 255).astype(np.uint8)
    np.testing.assert_array_equal(to_float(as_bytes), quantised(grid, x_adv, 256))
