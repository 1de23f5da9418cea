"""The driver drops finished examples from the batch; nobody's result may feel it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import (
    L2,
    Linf,
    Misclassify,
    Restarts,
    WorstOf,
    device_loop,
    example_keys,
    host_loop,
    margin,
    pytree,
)
from advjax.answers import fold_in_each
from advjax.attacks.core import driver, threads
from advjax.attacks.core.driver import Iterative
from advjax.attacks.core.judging import Tally, ask, ask_with_gradient
from advjax.pytrees import Array, driver_only, replace
from advjax.shapes import widen


@pytree
class State:
    x_adv: Array
    length: Array
    tally: Tally
    keys: Any = None


@pytree
class Walk(Iterative):
    """Small random-length steps along the gradient's sign, until the model errs."""

    ball: Any = Linf(1.0)
    goal: Any = Misclassify()
    steps: int = driver_only(default=40)

    def init(self, key, model, x, y, steps):
        keys = example_keys(key, x.shape[0])
        length = jax.vmap(lambda k: jax.random.uniform(k, (), minval=0.002, maxval=0.02))(keys)
        _, judged = ask(self.goal, margin, model, x, y, None)
        tally = Tally.start(x, doubts=False).spend(forwards=1).see(judged, 0)
        return State(x_adv=x, length=length, tally=tally)

    def step(self, i, state, model, x, y):
        live = self.live(state)
        judged, grad = ask_with_gradient(self.goal, margin, model, state.x_adv, y, None)
        moved = jnp.clip(state.x_adv + widen(state.length, x) * jnp.sign(grad), 0, 1)
        return replace(
            state,
            x_adv=jnp.where(widen(live & ~judged.success, x), moved, state.x_adv),
            tally=state.tally.spend(live, live).see(judged, i, live),
        )

    def live(self, state):
        return state.tally.first_success < 0


@pytest.fixture
def batch(tiny):
    """(model, images [37, ...], labels): margins of all sizes, so examples finish one by one."""
    model, _, _, _ = tiny
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.uniform(0.1, 0.9, (37, 4, 3, 2)), jnp.float32)
    return model, x, jnp.argmax(model(x), axis=1).astype(jnp.int32)


def test_dropping_the_finished_changes_no_result(batch, key):
    model, x, y = batch
    found = Walk().run(key, model, x, y)
    spread = np.unique(np.asarray(found.forwards))
    assert len(spread) > 5 and found.success.mean() > 0.5  # or the test shows nothing
    for loop in (host_loop, device_loop):
        other = Walk().run(key, model, x, y, loop=loop)
        np.testing.assert_allclose(found.x_adv, other.x_adv, atol=1e-6)
        np.testing.assert_array_equal(found.forwards, other.forwards)
    keys = example_keys(key, 37)
    for i in (0, 20, 36):
        alone = Walk().run(keys[i : i + 1], model, x[i : i + 1], y[i : i + 1])
        np.testing.assert_allclose(found.x_adv[i], alone.x_adv[0], atol=1e-6)
        assert found.forwards[i] == alone.forwards[0]


def test_the_batch_shrinks_and_the_loop_ends_early(batch, key, monkeypatch):
    model, x, y = batch
    monkeypatch.setattr(threads, "_cores", lambda: 1)
    sizes = []
    step = driver._step
    monkeypatch.setattr(driver, "_step", lambda *a: sizes.append(a[4].shape[0]) or step(*a))
    easy = np.flatnonzero(np.asarray(Walk().run(key, model, x, y).forwards) < 20)
    sizes.clear()
    keys = example_keys(key, 37)[easy]
    Walk(steps=1000).run(keys, model, x[easy], y[easy])
    assert len(sizes) < 100  # of 1,000
    assert sizes[0] == len(easy) and sizes[-1] <= len(easy) // 2 + 1
    assert sorted(sizes, reverse=True) == sizes


def test_a_cascade_spends_nothing_on_the_fallen(batch, key):
    """Stages outside a trace run on those who stand; the ledger says the same as inside one."""
    model, x, y = batch
    attack = WorstOf((Walk(steps=5), Restarts(Walk(steps=8), n=2), Walk(ball=L2(), steps=60)))
    found = attack.run(key, model, x, y)
    jitted = jax.jit(lambda key, x, y: attack.run(key, model, x, y))(key, x, y)
    np.testing.assert_array_equal(found.success, jitted.success)
    np.testing.assert_array_equal(found.forwards, jitted.forwards)
    np.testing.assert_array_equal(found.backwards, jitted.backwards)
    np.testing.assert_allclose(found.x_adv, jitted.x_adv, atol=1e-6)
    first = Walk(steps=5).run(fold_in_each(example_keys(key, 37), 0), model, x, y)
    assert first.success.any() and not first.success.all()
    np.testing.assert_array_equal(found.forwards[first.success], first.forwards[first.success])


@pytest.mark.parametrize("backend, piece", [("cpu", "_step"), ("gpu", "_steps")])
def test_another_number_of_steps_is_no_new_program(tiny, key, monkeypatch, backend, piece):
    model, _, x, y = tiny
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    whole = Walk(steps=3).run(key, model, x, y)
    init, steps = driver._init._cache_size(), getattr(driver, piece)._cache_size()
    longer = Walk(steps=50).run(key, model, x, y)
    assert longer.success.sum() > whole.success.sum()
    assert init == driver._init._cache_size() and steps == getattr(driver, piece)._cache_size()
