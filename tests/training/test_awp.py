"""Adversarial weight perturbation: its size, where the gradient is taken, what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import Net, flat_linear, random_data, run_steps, step_training

from advjax import types
from advjax.attacks import PGD
from advjax.balls import Linf
from advjax.training import LinenApply, Madry, Standard
from advjax.training.objectives.awp import AWP, perturbation
from advjax.training.spec import root_keys

GAMMA = 0.05
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(0.2, 0.8, (8, 4, 4, 1)), jnp.float32)
BATCH = {"x": X, "y": jnp.asarray(RNG.integers(0, 4, 8), jnp.int32)}
KEYS = jax.random.split(jax.random.key(0), 8)
MADRY = Madry(attack=PGD(ball=Linf(eps=0.1), steps=2, best=False))


@pytest.fixture(scope="module")
def net():
    variables = jax.jit(Net().init)(jax.random.key(1), X)
    params = variables.pop("params")
    return LinenApply(Net()), params, variables


def spied(apply, seen):
    """The apply, noting the parameters of its training passes."""

    def called(params, stats, x, *, key=None, train=False):
        if train:
            jax.debug.callback(lambda p: seen.append(p), params)
        return apply(params, stats, x, key=key, train=train)

    return called


def test_every_weight_moves_by_gamma_of_its_length_and_nothing_else_moves(net):
    apply, params, stats = net
    seen = []
    jax.jit(lambda p: AWP(MADRY, gamma=GAMMA)(KEYS, spied(apply, seen), p, stats, BATCH))(params)
    jax.effects_barrier()
    by_place = lambda tree: {jax.tree_util.keystr(p): np.asarray(v) for p, v in
                             jax.tree.leaves_with_path(tree)}  # fmt: skip
    before = by_place(params)
    passes = [by_place(p) for p in seen]
    there = [p for p in passes if any((p[n] != before[n]).any() for n in p)]
    assert len(passes) == 2 and len(there) == 1  # the ascent at w, the loss at w + v
    for name, w in before.items():
        moved = there[0][name].astype(np.float64) - w
        if w.ndim > 1:
            assert np.linalg.norm(moved) == pytest.approx(GAMMA * np.linalg.norm(w), rel=1e-5)
        else:
            assert (moved == 0).all()


def test_the_direction_is_the_gradient_of_the_crafted_loss(net):
    apply, params, stats = net
    crafted = jax.jit(lambda p: MADRY.craft(types.Net(KEYS, apply, p, stats), BATCH))(params)
    loss = jax.jit(
        jax.value_and_grad(
            lambda p: MADRY.loss(types.Net(KEYS, apply, p, stats), crafted), has_aux=True
        )
    )
    (here, _), ascent = loss(params)
    there = jax.tree.map(jnp.add, params, perturbation(params, ascent, GAMMA))
    (expected, aux), grad = loss(there)
    awp = lambda p: AWP(MADRY, gamma=GAMMA)(KEYS, apply, p, stats, BATCH)
    (value, got), direction = jax.jit(jax.value_and_grad(awp, has_aux=True))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5) and value > here
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, direction, grad)
    jax.tree.map(close, got.stats, aux.stats)  # of the perturbed pass alone


def test_parameters_are_restored_to_the_bit():
    """A step of length zero leaves them as they were."""
    still = step_training(random_data(), objective=AWP(MADRY), optimizer=optax.sgd(0.0))
    state, _ = run_steps(still, jax.local_devices()[:2], n=2)
    params, _ = still.variables(root_keys(0)[0])
    same = lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert all(jax.tree.leaves(jax.tree.map(same, state.params, params)))


LINEAR = dict(
    module=None, apply=flat_linear,
    params={"w": jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32), "b": jnp.zeros(4)},
)  # fmt: skip


@pytest.mark.parametrize(
    "objective, changes", [(MADRY, {}), (Standard(), LINEAR)], ids=["madry", "plain, own apply"]
)
def test_the_ascent_is_of_the_whole_batch_on_any_number_of_devices(objective, changes):
    """A direction from a device's own images would differ between 1 and 8."""
    training = step_training(
        random_data(), objective=AWP(objective, gamma=0.3), optimizer=optax.sgd(0.5), **changes
    )
    (one, _), (eight, _) = (run_steps(training, jax.local_devices()[:d], n=2) for d in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.params, eight.params)


def test_the_warmup_and_the_schedule_inside_go_by_the_step():
    ramp = optax.linear_schedule(0.0, 1.0, 4)
    objective = AWP(Madry(attack=MADRY.attack, eps_schedule=ramp), gamma=GAMMA, warmup=2)
    steps = [objective.at(jnp.int32(s)) for s in range(4)]
    assert [float(o.gamma) for o in steps] == pytest.approx([0, 0, GAMMA, GAMMA])
    assert [float(o.objective.attack.ball.eps) for o in steps] == pytest.approx(
        [0, 0.025, 0.05, 0.075]
    )


def test_it_costs_one_more_pass_forward_and_backward():
    width = 256
    params = {"a": jnp.ones((width, width)), "b": jnp.ones((width, width))}
    batch = {"x": jnp.ones((32, width)), "y": jnp.zeros(32, jnp.int32)}
    keys = jax.random.split(jax.random.key(0), 32)

    def apply(params, stats, x, *, key=None, train=False):
        return jnp.tanh(x @ params["a"]) @ params["b"], stats

    def flops(objective):
        grad = jax.jit(jax.grad(lambda p: objective(keys, apply, p, {}, batch)[0]))
        return grad.lower(params).compile().cost_analysis()["flops"]

    # Its own sums over the weights are a few percent of so small a batch's passes.
    assert flops(AWP(Standard())) / flops(Standard()) == pytest.approx(2, abs=0.1)
