"""What every objective keeps to; a new objective is one more row of ``objective_rows.py``."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import table
from objective_row import KEYS, Network, X, Y, take
from objective_rows import ROWS, other_network
from specs import comes_back, same

from advjax.training import objectives

TRACES: list[None] = []


# Another option of what has a row: CI runs it.
SLOW = ("TRADES paired",)


def rows(names=ROWS):
    return table.rows("objective", names, SLOW)


TABLE = pytest.mark.parametrize("name", rows())


def test_every_objective_has_a_row():
    there = {getattr(objectives, name) for name in objectives.__all__}
    there = {cls for cls in there if isinstance(cls, type)}
    assert there == {type(row.at(2)) for row in ROWS.values()}


COPIED = ("AWP", "IBP")  # with every number as an array


def loss_of(objective, apply, params, stats, keys, batch):
    """The loss; of an objective that carries a state, after one step of it."""
    TRACES.append(None)
    call = lambda params, batch: objective(keys, apply, params, stats, batch)
    if objective.carries:
        first = lambda c: call(jax.lax.stop_gradient(params), {**batch, "carry": c})[0]
        carry = objective.start(batch["x"].shape)
        carry = jax.lax.stop_gradient(objective.advance(carry, jax.grad(first)(carry)))
        batch = {**batch, "carry": carry}
    loss, aux = call(params, batch)
    return loss, aux.metrics


@partial(jax.jit, static_argnames="apply")
def run(objective, apply, params, stats, keys, batch):
    """``((loss, metrics), gradient)``."""
    value = lambda params: loss_of(objective, apply, params, stats, keys, batch)
    return jax.value_and_grad(value, has_aux=True)(params)


def parts(network: Network):
    return network.apply, network.params, network.stats


def batch_of(row, x=X, classes=4):
    """Six images, or images of another size, and all that goes with them."""
    like = lambda v: v.reshape(*v.shape[:-3], *x.shape[1:]) if v.ndim > 3 else v
    return {"x": x, "y": Y % classes, **{name: like(v) for name, v in row.batch.items()}}


TALL = X.reshape(6, 8, 2, 1)


def close(a, b, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), a, b)


def finite(found):
    return all(np.isfinite(v).all() for v in jax.tree.leaves(found))


@TABLE
def test_numbers_are_one_trace_and_vmap_over_them_is_the_loop(name):
    """Of two classes, on images that are not square."""
    row = ROWS[name]
    network, batch = row.network(row.fewest), batch_of(row, TALL, row.fewest)
    sweep = jax.jit(jax.vmap(lambda n: run(row.make(**n), *parts(network), KEYS, batch)))
    numbers = {name: np.float32(v) for name, v in row.numbers.items()}
    (losses, metrics), grads = jax.device_get(sweep(numbers))
    alone = [run(row.at(i), *parts(network), KEYS, batch) for i in range(3)]
    before = len(TRACES)
    run(jax.tree.map(lambda v: np.float32(0.9) * v, row.at(2)), *parts(network), KEYS, batch)
    sweep({name: np.float32(0.9) * v for name, v in numbers.items()})
    assert len(TRACES) == before
    for i, ((loss, told), grad) in enumerate(alone):
        close(losses[i], loss)
        close(jax.tree.map(lambda v, i=i: v[i], grads), grad)
        assert told.keys() == metrics.keys()
    logits = np.float64(X).reshape(6, 16) @ np.float64(network.weights)
    if row.known is not None:
        expected = row.known(logits, batch["y"]).mean()
        assert losses[0] == pytest.approx(expected, rel=1e-5)
    row.then(losses, grads, logits, batch["y"])


@TABLE
def test_an_images_part_belongs_to_it_and_its_key(name):
    """Another order of the batch is the same loss and gradient, and so is each image alone."""
    row, order = ROWS[name], np.asarray(ROWS[name].order)
    network, batch, objective = row.network(4), batch_of(row), row.at(2)
    (loss, _), grad = run(objective, *parts(network), KEYS, batch)
    (other, _), other_grad = run(objective, *parts(network), KEYS[order], take(batch, order))
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    close(other_grad, grad)
    single = [run(objective, *parts(network), KEYS[i : i + 1], take(batch, [i])) for i in range(6)]
    assert finite(single)
    if not row.coupled:
        assert float(np.mean([loss for (loss, _), _ in single])) == pytest.approx(
            float(loss), rel=1e-5
        )
        close(jax.tree.map(lambda *g: np.mean(g, axis=0), *(g for _, g in single)), grad)


@TABLE
def test_awkward_inputs_give_finite_answers(name):
    """No gradient at all, certain answers, pixels on the bounds; of four classes and of few."""
    row = ROWS[name]
    bounds = (X > 0.5).astype(np.float32)
    for classes, images in ((4, X), (row.fewest, TALL)):
        apply, params, stats = parts(row.network(classes))
        batch = batch_of(row, images, classes)
        for objective in (row.at(0), row.at(2)):
            for scale in (0, 100, 1000):
                scaled = jax.tree.map(lambda v, s=scale: np.float32(s) * v, params)
                assert finite(run(objective, apply, scaled, stats, KEYS, batch)), (classes, scale)
            edge = {**batch, "x": bounds.reshape(images.shape)}
            assert finite(run(objective, apply, params, stats, KEYS, edge)), classes


@pytest.mark.parametrize("name", rows(name for name, row in ROWS.items() if row.scheduled))
def test_the_schedule_scales_the_budget_and_is_gone(name):
    make = ROWS[name].scheduled
    growing = make(optax.linear_schedule(0.0, 1.0, 4), 1)
    now = jax.jit(lambda step: growing.at(step))
    for step, share in ((0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0), (9, 1.0)):
        found, expected = now(step), make(None, share)
        assert jax.tree.structure(found) == jax.tree.structure(expected)  # no schedule
        close(found, expected, atol=1e-7)
    done = now(2)
    assert done.at(7) is done or (name in COPIED and same(done.at(7), done))


def test_an_objective_without_a_schedule_is_that_of_every_step():
    for name, row in ROWS.items():
        objective = row.at(2)
        now = objective.at(jnp.int32(1))
        assert now is objective or (name in COPIED and same(now, objective)), name


@pytest.mark.parametrize("name", ROWS)
def test_it_comes_back_from_its_spec(name):
    row = ROWS[name]
    written = row.spec() if row.spec else row.at(2)
    ensemble = isinstance(written, objectives.EnsembleAdversarial)
    comes_back(
        written, values={"models.0.variables": other_network().variables} if ensemble else {}
    )


@pytest.mark.parametrize("name", ROWS)
def test_what_it_does_not_take_is_refused(name):
    for error, cases in ((ValueError, ROWS[name].refused), (TypeError, ROWS[name].wrong_type)):
        for message, make in cases.items():
            with pytest.raises(error, match=message):
                make()
