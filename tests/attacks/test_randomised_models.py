"""Attacks on models that draw: expectations in chunks, and queries that are answered by draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import (
    EOT,
    L2,
    NES,
    PGD,
    SPSA,
    Boundary,
    HopSkipJump,
    Linf,
    Restarts,
    SimBA,
    Square,
    Transformed,
    as_model,
    example_keys,
    pytree,
    replace,
)
from advjax.answers import is_stochastic

QUERIES = 30
ATTACKS = {
    "nes": lambda: NES(ball=Linf(0.1), queries=QUERIES, samples=6, chunk=2),
    "spsa": lambda: SPSA(ball=Linf(0.1), queries=QUERIES, samples=6),
    "simba": lambda: SimBA(ball=Linf(0.9), queries=QUERIES, step_size=0.05),
    "square": lambda: Square(ball=Linf(0.1), steps=QUERIES - 1),
    "boundary": lambda: Boundary(ball=L2(), queries=QUERIES),
    "hop_skip_jump": lambda: HopSkipJump(ball=L2(), queries=QUERIES, probes=5, chunk=5),
}
WAYS = {"one draw": lambda attack: attack, "eot": lambda attack: EOT(attack, samples=4, chunk=2)}
TABLE = pytest.mark.parametrize("name", ATTACKS)
BOTH = pytest.mark.parametrize("way", WAYS)


def noise(sigma, key, x):
    return x + sigma * jax.random.normal(key, x.shape)


@pytest.fixture
def noisy(tiny):
    model, _, x, y = tiny
    return Transformed(model, jax.tree_util.Partial(noise, 0.1)), x, y


def most_queries(name):
    """NES and SPSA spend whole steps alone."""
    return 1 + (QUERIES - 1) // 7 * 7 if name in ("nes", "spsa") else QUERIES


@TABLE
def test_a_query_attack_depends_on_its_key_alone(noisy, key, name):
    """The same again; and in another order, with other neighbours."""
    model, x, y = noisy
    attack = WAYS["eot"](ATTACKS[name]())
    keys = example_keys(key, 8)
    record = attack.run(key, model, x, y)
    order = np.array([4, 0, 5])
    mixed = lambda own, new: jnp.concatenate([own[order], new[:3]])
    others = (jax.random.split(jax.random.key(5), 3), jnp.zeros_like(x), y)
    drawn, images, labels = map(mixed, (keys, x, y), others)
    again = attack.run(drawn, model, images, labels)
    np.testing.assert_allclose(record.x_adv[order], again.x_adv[:3], atol=1e-5)
    for field in ("success", "forwards", "first_success"):
        left, right = getattr(record, field)[order], getattr(again, field)[:3]
        np.testing.assert_array_equal(left, right, field)
    other = attack.run(jax.random.key(5), model, x, y)
    assert not np.array_equal(record.x_adv, other.x_adv)
    assert np.isfinite(record.loss).all() and (record.forwards <= 4 * (QUERIES + 1)).all()


@TABLE
@BOTH
def test_a_query_attack_asks_no_more_than_it_may_and_says_how_much(key, name, way):
    """The model counts the images it is shown, all of them one example's."""
    shown = []

    def counted(bias, x):
        jax.debug.callback(lambda x: shown.extend(x), x)
        return 0.01 * x.reshape(x.shape[0], -1)[:, :3] + bias[None]

    x, y = jnp.full((1, 3, 4, 1), 0.5), jnp.zeros(1, jnp.int32)
    attack = WAYS[way](ATTACKS[name]())
    samples = attack.samples if way == "eot" else 1
    run = lambda bias: attack.run(
        key, Transformed(jax.tree_util.Partial(counted, jnp.array(bias)), partial(noise, 0.1)), x, y
    )
    record = run([9.0, 0.0, 0.0])  # nothing fools it
    jax.effects_barrier()
    assert record.forwards[0] == samples * (most_queries(name) + 1)  # and the judgement
    assert record.backwards[0] == 0 and not record.success[0]
    if name == "hop_skip_jump":  # it fills up a batch of probes, which is not counted
        assert len(shown) >= record.forwards[0]
    else:
        assert len(shown) == record.forwards[0]
    shown.clear()
    record = run([0.0, 9.0, 0.0])  # wrong as it is: one look, one judgement
    jax.effects_barrier()
    assert record.success[0] and record.forwards[0] == 2 * samples == len(shown)


def test_chunks_are_the_same_draws(noisy, key):
    model, x, y = noisy
    whole = EOT(PGD(ball=L2(0.4), steps=3), samples=6)
    parts = replace(whole, chunk=2)
    one, other = whole.run(key, model, x, y), parts.run(key, model, x, y)
    np.testing.assert_allclose(one.x_adv, other.x_adv, atol=1e-5)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-4, atol=1e-5)
    for field in ("success", "forwards", "backwards", "first_success", "zero_gradient"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_memory_is_bounded_by_the_chunk(key):
    """What a gradient holds at a time: XLA's own figure, on a network with wide activations."""

    def wide(weights, x):
        hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ weights)
        return jnp.tanh(hidden @ weights.T)[:, :5]

    weights = jax.random.normal(key, (24, 4096))
    model = jax.tree_util.Partial(wide, weights)
    noisy = Transformed(model, jax.tree_util.Partial(noise, 0.1))
    x, y = jnp.full((8, 4, 3, 2), 0.5), jnp.zeros(8, jnp.int32)

    def held(samples, chunk):
        attack = EOT(PGD(ball=Linf(0.1), steps=1), samples=samples, chunk=chunk)
        run = lambda key, noisy, x, y: attack.run(key, noisy, x, y).x_adv
        return jax.jit(run).lower(key, noisy, x, y).compile().memory_analysis().temp_size_in_bytes

    activations = 64 * 8 * 4096 * 4
    assert held(64, None) > activations
    assert held(64, 4) < activations / 4


def test_a_deterministic_gradient_is_the_mean_over_the_draws(noisy, key):
    """One step on the mean over draws, against the gradient added up by hand."""
    model, x, y = noisy
    ball = L2(0.2)
    attack = PGD(ball=ball, steps=1, step_size=0.2, random_start=False, best=False)
    seen = []

    def mean(logits, y):  # linear in the logits, so that the mean does not hide in a softmax
        return -jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]

    for chunk in (None, 2):
        eot = EOT(replace(attack, loss=mean), samples=6, chunk=chunk)
        seen.append(eot(key, model, x, y))
    weights = jax.grad(lambda x: mean(model.model(x), y).sum())(x)  # the same at every draw
    expected = ball.apply(x, 0.2 * ball.steepest(weights, x))
    for x_adv in seen:
        np.testing.assert_allclose(x_adv, expected, atol=1e-5)


def test_restarts_around_and_inside(noisy, key):
    model, x, y = noisy
    pgd = PGD(ball=L2(0.3), steps=2)
    around = Restarts(EOT(pgd, samples=4, chunk=2), n=2).run(key, model, x, y)
    inside = EOT(Restarts(pgd, n=2), samples=4, chunk=2).run(key, model, x, y)
    assert (around.forwards == inside.forwards).all()
    assert (around.backwards == 4 * 2 * 2).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 0}, "given samples=0; expected an integer >= 1"),
        ({"samples": 2.0}, "given samples=2.0; expected an integer >= 1"),
        ({"chunk": 0}, "given chunk=0; expected None or an integer >= 1"),
        ({"samples": 20, "chunk": 8}, "given chunk=8 for 20 samples; expected a divisor"),
    ],
)
def test_eot_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        EOT(PGD(ball=Linf(0.1)), **fields)


@pytree
class NoisyLinear:
    """A randomised model one of whose leaves is a function, as in Equinox modules."""

    weights: jax.Array
    activation: object

    stochastic = True

    def __call__(self, x, *, key):
        noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(key)
        return self.activation((x + noise).reshape(x.shape[0], -1) @ self.weights)


def test_a_model_with_leaves_that_are_no_arrays_still_draws(tiny, key):
    _, weights, x, y = tiny
    noisy = NoisyLinear(weights=weights, activation=jnp.tanh)
    mixed, keys = as_model(noisy), example_keys(key, 8)
    assert is_stochastic(mixed)
    np.testing.assert_allclose(mixed(x, key=keys), noisy(x, key=keys), rtol=1e-6)
    assert np.isfinite(PGD(ball=L2(0.3), steps=2)(key, noisy, x, y)).all()
