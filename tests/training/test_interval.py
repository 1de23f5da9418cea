"""The IBP objective: plain cross-entropy at its ends, the closed form on a linear network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from advjax import create
from advjax.balls import Linf
from advjax.losses import cross_entropy
from advjax.training import LinenApply, Standard
from advjax.training.objectives.interval import IBP

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(0.2, 0.8, (6, 2, 2, 1)), jnp.float32)
Y = jnp.asarray([0, 1, 2, 0, 1, 2])
BATCH = {"x": X, "y": Y}
KEYS = jax.random.split(jax.random.key(0), 6)
APPLY = LinenApply(create("mlp", classes=3, hidden=()))
KERNEL, BIAS = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((4, 3), (3,)))
PARAMS = {"Dense_0": {"kernel": KERNEL, "bias": BIAS}}


@jax.jit
def closed_form(params, eps):
    """Every other logit at its worst relative to the label's, of a linear network."""
    kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
    difference = kernel.T[None] - kernel.T[Y][:, None]
    flat = X.reshape(6, -1)
    margins = jnp.einsum("bkn,bn->bk", difference, flat) + eps * jnp.abs(difference).sum(-1)
    return jnp.mean(cross_entropy(margins + bias[None] - bias[Y][:, None], Y))


@jax.jit
def loss(objective, params=PARAMS):
    return objective(KEYS, APPLY, params, {}, BATCH)


def test_loss_and_gradient_are_the_closed_form_of_a_linear_network():
    plain, _ = loss(Standard())
    for kappa in (0.0, 0.3, 1.0):
        expected = kappa * plain + (1 - kappa) * closed_form(PARAMS, 0.1)
        found, aux = loss(IBP(Linf(0.1), kappa=kappa))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert 0 <= aux.metrics["certified_accuracy"] <= aux.metrics["clean_accuracy"]
    # Away from the kink at equal weights, which the label's own row has, where the loss is flat.
    found = jax.grad(lambda p: loss(IBP(Linf(0.1), kappa=0.0), p)[0])(PARAMS)
    expected = jax.grad(closed_form)(PARAMS, 0.1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_without_a_radius_the_worst_case_is_the_plain_one():
    np.testing.assert_allclose(loss(IBP(Linf(0.0), kappa=0.0))[0], loss(Standard())[0], rtol=1e-4)


def test_schedules_grow_eps_and_lower_kappa():
    objective = IBP(
        Linf(0.2),
        eps_schedule=optax.linear_schedule(0, 1, 10, 2),
        kappa_schedule=optax.linear_schedule(1, 0.5, 10, 2),
    )
    for step, share in ((0, 0.0), (2, 0.0), (7, 0.5), (12, 1.0), (99, 1.0)):
        now = jax.jit(lambda objective, step: objective.at(step))(objective, step)
        assert now.ball.eps == pytest.approx(0.2 * share) and now.eps_schedule is None
        assert now.kappa == pytest.approx(1 - 0.5 * share)


def test_training_raises_the_certified_share_of_a_deep_network():
    apply = LinenApply(create("mlp", classes=3, hidden=(8,)))
    params = apply.module.init(jax.random.key(0), X)["params"]
    batch = {"x": jnp.clip(X * 0.1 + jax.nn.one_hot(Y, 4).reshape(6, 2, 2, 1), 0, 1), "y": Y}
    optimizer = optax.adam(0.05)

    @jax.jit
    def step(params, state):
        objective = IBP(Linf(0.2), kappa=0.5)
        grad = jax.grad(lambda p: objective(KEYS, apply, p, {}, batch), has_aux=True)
        grads, aux = grad(params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
            updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, aux.metrics["certified_accuracy"]

    state, shares = optimizer.init(params), []
    for _ in range(40):
        params, state, share = step(params, state)
        shares.append(float(share))
    assert shares[0] < 0.5 and shares[-1] == 1
