"""One training step: the same update on any number of devices, without an avoidable pass."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import random_data, run_steps, step_training

from advjax.attacks import FGSM, PGD
from advjax.balls import Linf
from advjax.data import Augment, batch_indices, to_float
from advjax.data.streams import _ORDER, Batches
from advjax.runs.state import create_state
from advjax.training import Madry, Standard
from advjax.training.parallel import parallel, positions, replicate
from advjax.training.spec import root_keys
from advjax.training.step import make_step

EPS = 0.1


class Foreign(nn.Module):
    """A user's own module, which knows nothing of axes or training."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(jnp.tanh(nn.Dense(8)(x.reshape(x.shape[0], -1))))


class ForeignBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(4)(x)


@pytest.fixture(scope="module")
def data():
    return random_data()


MADRY = Madry(attack=PGD(ball=Linf(eps=EPS), steps=2, best=False))


@pytest.mark.parametrize(
    "devices, changes",
    [
        ((2, 8), dict(objective=MADRY, augment=Augment(crop=1, flip=True))),
        ((8,), dict(objective=Madry(attack=MADRY.attack, craft_train=True, clean_weight=0.5))),
        ((2,), dict(objective=MADRY, module=Foreign())),
    ],
    ids=["madry+augment", "mixture+craft_train", "foreign"],
)
def test_a_step_on_several_devices_is_the_full_batch_update(data, devices, changes):
    """With random starts, BatchNorm, dropout and augmentation; SGD, because Adam hides scale."""
    training = step_training(data, **changes)
    one, one_metrics = run_steps(training, jax.local_devices()[:1])
    before = training.variables(root_keys(0)[0])[0]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, before)
    assert max(jax.tree.leaves(moved)) > 1e-2  # there is an update to compare
    for n in devices:
        many, metrics = run_steps(training, jax.local_devices()[:n])
        for part in ("params", "stats"):
            got, expected = (jax.device_get(getattr(s, part)) for s in (many, one))
            chex.assert_trees_all_close(got, expected, atol=1e-5, rtol=0)
        for name in metrics:
            assert float(metrics[name]) == pytest.approx(float(one_metrics[name]), abs=1e-4)


def test_the_step_is_the_gradient_step_written_out_by_hand(data):
    training = step_training(data, module=Foreign(), optimizer=optax.sgd(0.5))
    got, metrics = run_steps(training, jax.local_devices()[:2])
    init_key, key, _ = root_keys(0)
    params, _ = training.variables(init_key)
    index = batch_indices(jax.random.fold_in(key, _ORDER), 0, 40, 16)
    x, y = to_float(data.x[index]), data.y[index]

    def loss(p):
        logits = Foreign().apply({"params": p}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, grads = jax.value_and_grad(loss)(params)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    chex.assert_trees_all_close(jax.device_get(got.params), expected, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), abs=1e-6)


def test_batch_statistics_of_a_foreign_module_are_averaged_over_devices(data):
    training = step_training(data, module=ForeignBatchNorm())
    one, _ = run_steps(training, jax.local_devices()[:1])
    two, _ = run_steps(training, jax.local_devices()[:2])
    mean = lambda s: np.asarray(s.stats["batch_stats"]["BatchNorm_0"]["mean"])
    np.testing.assert_allclose(mean(two), mean(one), atol=1e-6)


def test_dropout_of_a_foreign_module_differs_between_devices(data):
    class Mask(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            self.param("unused", nn.initializers.zeros, (1,))
            mask = nn.Dropout(0.5, deterministic=not train)(jnp.ones((x.shape[0], 4)))
            self.put_variable("seen", "mask", jax.lax.all_gather(mask, "batch") if train else mask)
            return mask

    from advjax.training.apply import LinenApply

    apply = LinenApply(Mask(), axis_name="batch")
    keys = jax.random.split(jax.random.key(0), 8).reshape(2, 4)
    call = lambda k: apply({"unused": jnp.zeros(1)}, {"seen": {"mask": 0}}, jnp.ones((4, 2)),
                           key=k, train=True)[0]  # fmt: skip
    masks = np.asarray(jax.pmap(call, axis_name="batch", devices=jax.local_devices()[:2])(keys))
    assert (masks[0] != masks[1]).any()


def test_the_state_is_donated_and_the_callers_arrays_live_on(data):
    devices = jax.local_devices()[:2]
    training = step_training(data)
    params, stats = training.variables(root_keys(0)[0])
    state = create_state(params, stats, training.optimizer, jax.random.key(0), averaged=False)
    placed = replicate(state, devices)
    step = parallel(make_step(training.network(), training.optimizer, Batches(16)), devices)
    put = lambda tree: replicate(tree, devices)
    step(placed, positions(16, devices), put(Standard()), put(training.arrays()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch_size=10 on 8 devices; expected a multiple of 8"):
        positions(10, jax.local_devices())


def test_objective_numbers_are_data_and_another_eps_is_no_new_trace(data):
    devices = jax.local_devices()[:1]
    training = step_training(data, module=Foreign(), objective=MADRY)
    traces = []
    inner = make_step(training.network(), training.optimizer, Batches(16))

    def counted(*args):
        traces.append(None)
        return inner(*args)

    step = parallel(counted, devices)
    put = lambda tree: replicate(tree, devices)
    params, stats = training.variables(root_keys(0)[0])
    losses = []
    for eps in (0.05, 0.1, 0.2):
        objective = Madry(attack=PGD(ball=Linf(eps=eps), steps=2, best=False))
        state = create_state(params, stats, training.optimizer, jax.random.key(0), averaged=False)
        _, metrics = step(put(state), positions(16, devices), put(objective),
                          put(training.arrays()))  # fmt: skip
        losses.append(float(metrics["loss"]))
    assert len(traces) == 1
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_schedules_of_eps_and_learning_rate_follow_the_step(data):
    ramp = optax.linear_schedule(0.0, 1.0, 2)
    attack = PGD(ball=Linf(eps=EPS), steps=1, random_start=False, best=False)
    scheduled = step_training(
        data, module=Foreign(), objective=Madry(attack=attack, eps_schedule=ramp),
        optimizer=optax.sgd(optax.linear_schedule(0.0, 0.1, 2)),
    )  # fmt: skip
    clean = step_training(data, module=Foreign())
    first, metrics = run_steps(scheduled, jax.local_devices()[:1])
    _, expected = run_steps(clean, jax.local_devices()[:1])
    # Step 0: factor 0 is no attack, learning rate 0 is no change.
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-6)
    chex.assert_trees_all_equal(
        jax.device_get(first.params), jax.device_get(scheduled.variables(root_keys(0)[0])[0])
    )
    eps = [float(scheduled.objective.at(jnp.int32(i)).attack.ball.eps) for i in range(4)]
    assert eps == pytest.approx([0, EPS / 2, EPS, EPS])


def test_the_moving_average_is_the_one_written_out(data):
    training = step_training(data, module=Foreign(), ema_decay=0.5)
    devices = jax.local_devices()[:1]
    first, second = (run_steps(training, devices, n=n)[0] for n in (1, 2))
    start = training.variables(root_keys(0)[0])[0]
    decay = [min(0.5, 1 / 10), min(0.5, 2 / 11)]
    mix = lambda d: lambda a, v: a + (1 - d) * (np.asarray(v) - a)
    expected = jax.tree.map(mix(decay[0]), start, first.params)
    expected = jax.tree.map(mix(decay[1]), expected, second.params)
    chex.assert_trees_all_close(jax.device_get(second.ema["params"]), expected, atol=1e-6)


@pytest.mark.parametrize("weight, passes", [(None, 5), (0.5, 8)])
def test_training_on_attacked_images_costs_no_avoidable_pass(weight, passes):
    """FGSM needs forward and backward to the image (2), training forward and backward (3); the
    clean half of a mixture 3 more."""
    width, batch = 256, 32
    params = {"a": jnp.ones((width, width)), "b": jnp.ones((width, width))}

    def apply(params, stats, x, *, key=None, train=False):
        del key, train
        return jnp.tanh(x @ params["a"]) @ params["b"], stats

    objective = Madry(attack=FGSM(ball=Linf(eps=EPS), best=False), clean_weight=weight)
    batch = {"x": jnp.ones((batch, width)), "y": jnp.zeros(batch, jnp.int32)}
    keys = jax.random.split(jax.random.key(0), 32)
    grad = jax.jit(jax.value_and_grad(lambda p: objective(keys, apply, p, {}, batch), has_aux=True))
    cost = grad.lower(params).compile().cost_analysis()["flops"]
    one_pass = 2 * 2 * 32 * width * width
    # The first layer's training pass needs no gradient of its input: half a pass less.
    least = passes - 0.5 if weight is None else passes - 1
    assert cost / one_pass == pytest.approx(least, abs=0.15)
