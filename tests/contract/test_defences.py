"""What every defence keeps to; a new defence is one more row of ``defence_rows.py``."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table
from defence_rows import CNN, PUBLIC, ROWS, VARIABLES, X
from specs import comes_back

from advjax.answers import answer_of, as_model, example_keys, is_stochastic, runs_on_host
from advjax.attacks import EOT, PGD
from advjax.balls import L2

TRACES: list[None] = []
KEYS = example_keys(jax.random.key(1), 4)


# Another option of what has a row: CI runs it.
SLOW = ("WithDetector squeezing",)


def rows(names=ROWS):
    return table.rows("defence", names, SLOW)


TABLE = pytest.mark.parametrize("name", rows())


def test_every_defence_has_a_row():
    assert {row.kind for row in ROWS.values()} == PUBLIC


def ask(defence, x, keys):
    TRACES.append(None)
    return answer_of(defence, x, keys)


answer = jax.jit(ask)


@jax.jit
def slope_and_answer(defence, x, keys):
    """The gradient of what is said of class 1, the only number or all pixels; and the answer."""

    def said(x):
        out = answer_of(defence, x, keys)
        return jnp.sum(out[:, 1] if out.ndim == 2 else out), out

    return jax.grad(said, has_aux=True)(x)


@TABLE
def test_numbers_are_one_trace_and_vmap_over_them_is_the_loop(name):
    row = ROWS[name]
    defence = row.at(-1)
    assert as_model(defence) is defence  # a pytree whose leaves are all numbers
    assert runs_on_host(defence) == row.on_host
    alone = [answer(row.at(i), X, KEYS) for i in (0, 1)] if row.numbers else []
    before = len(TRACES)
    np.testing.assert_allclose(answer(defence, X, KEYS), ask(defence, X, KEYS), atol=1e-5)
    if not row.numbers:
        return
    assert len(TRACES) == before + 1  # the call without jit
    for found in alone:
        assert np.isfinite(found).all() and found.dtype == jnp.float32
    numbers = {name: np.float32(v) for name, v in row.numbers.items()}
    swept = jax.jit(jax.vmap(lambda n: answer_of(row.make(**n), X, KEYS)))(numbers)
    np.testing.assert_allclose(swept, jnp.stack(alone), rtol=1e-5, atol=1e-5)
    assert np.allclose(alone[0], alone[1]) == row.calm


@TABLE
def test_an_image_does_not_feel_its_neighbours(name):
    """In another order and alone the answer is the same, and the draws are those of its key."""
    defence, order = ROWS[name].at(-1), np.array([2, 0, 3, 1])
    whole = answer(defence, X, KEYS)
    np.testing.assert_allclose(answer(defence, X[order], KEYS[order]), whole[order], atol=1e-5)
    np.testing.assert_allclose(answer(defence, X[2:3], KEYS[2:3]), whole[2:3], atol=1e-5)
    if is_stochastic(defence):
        assert not np.allclose(answer(defence, X, KEYS[::-1]), whole)
        equal = answer(defence, jnp.stack([X[0]] * 4), KEYS)
        assert len({row.tobytes() for row in np.asarray(equal)}) == 4


@TABLE
def test_an_attack_has_a_way_through(name):
    """The adaptive defence answers alike, and every image has a gradient."""
    row = ROWS[name]
    defence = row.at(-1)
    adaptive = row.adaptive(defence)
    assert is_stochastic(adaptive) == is_stochastic(defence)
    assert runs_on_host(adaptive) == row.on_host
    atol = 1e-5 if row.slope is None else 0
    slope, found = slope_and_answer(adaptive, X, KEYS)
    np.testing.assert_allclose(found, answer(defence, X, KEYS), atol=atol)
    assert np.isfinite(slope).all() and (slope != 0).any(axis=(1, 2, 3)).all()
    if row.slope is not None:
        np.testing.assert_allclose(slope.reshape(4, -1), row.slope, rtol=1e-6)
    if row.blocked == "refused":
        with pytest.raises(TypeError, match="given to something that differentiates it"):
            slope_and_answer(defence, X, KEYS)
    elif row.blocked == "zero":
        assert (slope_and_answer(defence, X, KEYS)[0] == 0).all()
    else:
        assert (slope_and_answer(defence, X, KEYS)[0] != 0).any()


@pytest.mark.parametrize("name", rows(n for n, row in ROWS.items() if is_stochastic(row.at(-1))))
def test_a_randomised_defence_is_attacked_over_its_draws(name, key):
    defence = ROWS[name].at(-1)
    y = jnp.argmax(answer(defence, X, KEYS), axis=-1)
    found = EOT(PGD(ball=L2(0.3), steps=1), samples=4).run(key, defence, X, y)
    assert (found.forwards == 4 * 3).all() and (found.zero_gradient == 0).all()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.spec])
def test_it_comes_back_from_its_spec(name):
    defence = ROWS[name].spec(CNN)
    has_model = "model" in {field.name for field in dataclasses.fields(defence)}
    held = {"model.variables": VARIABLES} if has_model else {}
    comes_back(defence, values=held, trusted=("defence_rows",))


def test_every_defence_is_written_as_a_spec():
    assert {row.kind for row in ROWS.values() if row.spec} == PUBLIC


@pytest.mark.parametrize("name", ROWS)
def test_what_it_does_not_take_is_refused(name):
    for message, make in ROWS[name].refused.items():
        with pytest.raises(ValueError, match=message):
            make()
