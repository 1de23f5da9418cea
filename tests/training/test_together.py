"""Trainings that are one program run as one and end as if each were alone."""

import gc
import os
import signal
import threading
import time
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import digits_training, one_device, random_data, step_training

from advjax import L2, TRADES, FreeAT, Linf, Madry, load_classifier
from advjax.attacks import FGSM, PGD
from advjax.models import create
from advjax.training import DivergedError, Standard, Stopped, fit, fit_together, read_rows, together
from advjax.training.compiled import program_of

SGD = optax.inject_hyperparams(optax.sgd)
RATES = (0.05, 0.1, 0.2)


def trainings(**changes):
    """They differ in learning rate, weight of TRADES, its radius, dropout and seed."""
    return [
        digits_training(
            module=create("mlp", hidden=(16,), dropout=0.1 * (i + 1)),
            objective=TRADES(PGD(ball=L2(0.2 * (i + 1)), step_size=0.2, steps=2), beta=1.0 + i),
            optimizer=SGD(learning_rate=lr),
            seed=i,
            **changes,
        )
        for i, lr in enumerate(RATES)
    ]


def close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol, rtol=1e-4)


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_each_ends_as_if_it_were_alone(devices, tmp_path):
    devices = jax.local_devices()[:devices]
    folders = [tmp_path / str(i) for i in range(3)]
    together = fit_together(trainings(), folders, devices=devices)
    for i, (training, result) in enumerate(zip(trainings(), together, strict=True)):
        alone = fit(training, tmp_path / f"alone-{i}", devices=devices)
        # Rounding; steps of an L2 attack do not hang on the signs of gradients near 0.
        close(result.last.model.variables, alone.last.model.variables, 2e-5)
        assert result.best.step == alone.best.step
        rows, others = read_rows(folders[i]), read_rows(tmp_path / f"alone-{i}")
        assert [(r["kind"], r["step"]) for r in rows] == [(r["kind"], r["step"]) for r in others]
        for row, other in zip(rows, others, strict=True):
            assert row.keys() == other.keys()
            for name in row.keys() - {"kind", "seconds"}:
                # An accuracy may differ by one image of 64 or 100.
                counted = row["kind"] != "train" or "accuracy" in name
                assert row[name] == pytest.approx(other[name], abs=0.017 if counted else 1e-3)
        close(load_classifier(folders[i], "last").variables, result.last.model.variables, 0)
    rates = [np.asarray(r.last.model.variables["hyper"]["Dropout_0"]["rate"]) for r in together]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3], rtol=1e-6)


def test_images_may_differ_if_they_are_as_many():
    some = [
        step_training(random_data(seed=i), optimizer=SGD(learning_rate=0.1), steps=3, seed=i)
        for i in range(2)
    ]
    found = fit_together(some, devices=one_device())
    for training, result in zip(some, found, strict=True):
        alone = fit(training, devices=one_device())
        close(result.last.model.variables, alone.last.model.variables, 1e-5)


def test_one_that_diverges_leaves_the_others_alone(tmp_path):
    rates = (0.1, 1e30, 0.2)
    several = [digits_training(optimizer=SGD(learning_rate=lr), log_every=1) for lr in rates]
    folders = [tmp_path / str(i) for i in range(3)]
    first, bad, last = fit_together(several, folders, devices=one_device())
    assert isinstance(bad, DivergedError) and bad.step <= 4
    assert first.last.step == last.last.step == 30
    alone = fit(digits_training(optimizer=SGD(learning_rate=0.2)), devices=one_device())
    close(last.last.model.variables, alone.last.model.variables, 1e-5)
    assert all(r["step"] < bad.step for r in read_rows(folders[1]) if r["kind"] == "train")


def test_one_that_stops_early_is_done(tmp_path):
    fields = dict(validation=0.2, patience=1, evaluate_every=5, attacks={})
    several = [digits_training(optimizer=SGD(learning_rate=lr), **fields) for lr in (0.0, 0.1)]
    idle, busy = fit_together(several, devices=one_device())
    assert "early stopping" in idle.stopped and idle.last.step < busy.last.step


def test_those_that_go_on_are_made_a_smaller_group(monkeypatch, tmp_path):
    sizes = []
    train = together._train_group
    monkeypatch.setattr(
        together, "_train_group", lambda runs, d: (sizes.append(len(runs)), train(runs, d))[1]
    )
    rates, steps = (0.05, 0.1, 0.15, 0.2, 0.25), (10, 20, 20, None, None)
    several = [
        digits_training(optimizer=SGD(learning_rate=lr), seed=i) for i, lr in enumerate(rates)
    ]
    until = [
        None if n is None else lambda rows, n=n: "enough" if rows[-1]["step"] == n else None
        for n in steps
    ]
    folders = [tmp_path / str(i) for i in range(5)]
    found = fit_together(several, folders, devices=one_device(), stop_when=until)
    assert sizes == [5, 2], "after 20 steps two of five go on"
    assert [r.last.step for r in found] == [10, 20, 20, 30, 30]
    assert [r.stopped for r in found] == ["enough"] * 3 + [None] * 2
    for training, stop, result in zip(several, until, found, strict=True):
        alone = fit(training, devices=one_device(), stop_when=stop)
        assert alone.last.step == result.last.step and alone.stopped == result.stopped
        close(result.last.model.variables, alone.last.model.variables, 1e-5)
        assert [r["step"] for r in result.history] == [r["step"] for r in alone.history]


@pytest.mark.slow
def test_after_a_signal_all_resume_and_end_the_same(tmp_path):
    calm = fit_together(trainings(), devices=one_device())
    folders = [tmp_path / str(i) for i in range(3)]

    def interrupt():
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if all(len(read_rows(f)) > 3 for f in folders):
                break
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped):
        fit_together(trainings(log_every=1), folders, devices=one_device())
        time.sleep(5)  # the signal comes late on a fast machine; then it is no test
    thread.join()
    (folders[1] / "checkpoints").rename(tmp_path / "gone")  # this one starts again
    found = fit_together(trainings(), folders, devices=one_device())
    for result, undisturbed in zip(found, calm, strict=True):
        # In groups of other sizes, so with other rounding, see above.
        close(result.last.model.variables, undisturbed.last.model.variables, 2e-4)
    again = fit_together(trainings(), folders, devices=one_device())
    assert all(result.was_finished for result in again)


TRACES = []


class Counted(nn.Module):
    """Counts its traces."""

    @nn.compact
    def __call__(self, x):
        TRACES.append(None)
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


def test_one_program_is_traced_once_alone_and_together():
    def training(i):
        return step_training(
            random_data(), module=Counted(), optimizer=SGD(learning_rate=0.1 * (i + 1)),
            objective=Madry(FGSM(ball=Linf(0.01 * (i + 1)))), seed=i, steps=2,
        )  # fmt: skip

    fit(training(0), devices=one_device())
    before = len(TRACES)
    fit(training(1), devices=one_device())
    assert len(TRACES) == before
    fit_together([training(i) for i in range(3)], devices=one_device())
    before = len(TRACES)
    fit_together([training(i) for i in range(3, 6)], devices=one_device())
    assert len(TRACES) == before


def test_a_compiled_step_keeps_no_data():
    data = random_data(seed=9)
    images = weakref.ref(data.x)
    training = step_training(data, optimizer=SGD(learning_rate=0.3), batch_size=12)
    fit(training, devices=one_device())
    del data, training
    gc.collect()
    assert images() is None


def test_what_is_another_program():
    data = random_data()
    base = step_training(data, optimizer=SGD(learning_rate=0.1))
    same = step_training(random_data(seed=3), optimizer=SGD(learning_rate=0.2), seed=4)
    assert program_of(base) == program_of(same)
    others = dict(
        optimizer=optax.sgd(0.1), batch_size=8, steps=2, ema_decay=0.9,
        objective=Standard(label_smoothing=0.1, ), module=Counted(),
        augment=lambda keys, x: x,
    )  # fmt: skip
    for name, value in others.items():
        other = step_training(data, **{"optimizer": SGD(learning_rate=0.1), name: value})
        # A number of the objective is data.
        assert (program_of(other) == program_of(base)) == (name == "objective"), name
    # An optimiser's plain numbers, and arrays it closes over, are part of its program.
    schedules = [optax.piecewise_constant_schedule(0.1, {5: s}) for s in (0.1, 0.2)]
    plain = [step_training(data, optimizer=optax.sgd(s)) for s in (*schedules, 0.1, 0.2)]
    assert len({program_of(t) for t in plain}) == 4
    for a, b in zip(closing_over(0.1), closing_over(0.2), strict=True):
        programs = [program_of(step_training(data, optimizer=optax.sgd(rate))) for rate in (a, b)]
        assert programs[0] != programs[1]
        runs = [step_training(data, optimizer=optax.sgd(r)).describe()["optimizer"] for r in (a, b)]
        assert runs[0] != runs[1]
    again = [step_training(data, optimizer=optax.sgd(closing_over(0.1)[1])) for _ in range(2)]
    assert program_of(again[0]) == program_of(again[1])


def closing_over(rate):
    """Learning rates that are arrays, outside and inside what is traced apart."""
    rates = jnp.asarray([rate, rate / 2])
    return (
        jnp.float32(rate),
        lambda step: rates[step],
        jax.jit(lambda step: rates[step]),
        lambda step: jax.lax.cond(step > 1, lambda: rates[0], lambda: rates[1]),
    )


def test_what_cannot_run_together_is_told(tmp_path):
    data = random_data()
    with pytest.raises(ValueError, match="0 and 1 are different programs"):
        fit_together([step_training(data), step_training(data, batch_size=8)])
    with pytest.raises(ValueError, match="given 1 run_dirs for 2 trainings"):
        fit_together([step_training(data), step_training(data)], [tmp_path])
    free = step_training(data, objective=FreeAT(ball=Linf(0.1)))
    with pytest.raises(ValueError, match="FreeAT hands a carry"):
        fit_together([free, free])
    assert fit_together([]) == []
