"""Attacks in parts, a thread per core: the same images and records as in one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.attacks.core import threads
from advjax.attacks.pgd import PGD
from advjax.balls import Linf
from advjax.models import Classifier, create, init


@pytest.fixture(scope="module")
def model():
    module = create("mlp", hidden=(8,), classes=3)
    return Classifier(module, init(module, jax.random.key(0), (4, 4, 1)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.random((24, 4, 4, 1)), jnp.float32), jnp.asarray(rng.integers(0, 3, 24))


def records(monkeypatch, parts, attack, model, batch):
    monkeypatch.setattr(threads, "_cores", lambda: parts)
    monkeypatch.setattr(threads, "_pool", [])
    return attack.run(jax.random.key(5), model, *batch)


@pytest.mark.parametrize("extra", [{}, {"best": False, "momentum": 0.9}])
def test_parts_give_the_record_of_the_whole(monkeypatch, model, batch, extra):
    attack = PGD(ball=Linf(eps=0.1), steps=3, **extra)
    whole = records(monkeypatch, 1, attack, model, batch)
    for parts in (2, 3, 5):  # 24 are no multiple of 5: a part is filled up
        for _ in range(2):  # the first time one part warms up
            split = records(monkeypatch, parts, attack, model, batch)
            np.testing.assert_allclose(split.x_adv, whole.x_adv, atol=1e-6)
            np.testing.assert_array_equal(split.success, whole.success)
            np.testing.assert_array_equal(split.first_success, whole.first_success)
            np.testing.assert_allclose(split.loss, whole.loss, rtol=1e-4, atol=1e-5)


def test_one_program_serves_all_parts(monkeypatch, model, batch):
    traces = []

    def counted(x):
        traces.append(x.shape)
        return model(x)

    attack = PGD(ball=Linf(eps=0.1), steps=2, best=False)
    monkeypatch.setattr(threads, "_cores", lambda: 3)
    monkeypatch.setattr(threads, "_pool", [])
    attack(jax.random.key(0), counted, *batch)
    before = len(traces)
    attack(jax.random.key(1), counted, *batch)
    assert len(traces) == before and traces.count((8, 4, 4, 1)) == 1


def test_numbers_per_example_and_small_batches_stay_whole(monkeypatch, model, batch):
    def refuse():
        raise AssertionError("no thread is wanted here")

    monkeypatch.setattr(threads, "_cores", lambda: 2)
    monkeypatch.setattr(threads, "_threads", refuse)
    x, y = batch
    PGD(ball=Linf(eps=jnp.full(24, 0.1)), steps=2)(jax.random.key(0), model, x, y)
    attack = PGD(ball=Linf(eps=0.1), steps=2)
    attack(jax.random.key(0), model, x[:7], y[:7])


def test_an_error_in_one_part_reaches_the_caller(monkeypatch, batch):
    monkeypatch.setattr(threads, "_cores", lambda: 2)
    x, y = batch

    def drive(key, x, y):
        if float(x[0, 0, 0, 0]) == float(batch[0][12, 0, 0, 0]):
            raise RuntimeError("the second part")
        return x

    with pytest.raises(RuntimeError, match="the second part"):
        threads.in_parts(drive, drive, "test", jax.random.key(0), x, y)
