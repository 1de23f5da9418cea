"""JumpReLU: exact at the threshold, a retrofit of every network, its threshold data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import Classifier, create, init
from advjax.attacks import PGD
from advjax.balls import Linf
from advjax.defences.jump_relu import JumpReLU, jump_relu

NETS = {
    "mlp": ((4, 4, 1), {"hidden": (6, 5)}),
    "lenet5": ((8, 8, 1), {"filters": (2, 3), "width": 4}),
    "convnet48": ((8, 8, 1), {"blocks": 1, "filters": 2, "batch_norm": True}),
    "densenet_bc": ((4, 4, 3), {"blocks": (1,), "growth": 2}),
    "preact_resnet18": ((4, 4, 3), {"stages": (1,), "width": 2}),
}


def classifier(name, seed=0):
    image, fields = NETS[name]
    module = create(name, classes=3, **fields)
    x = jnp.asarray(np.random.default_rng(seed).random((3, *image)), jnp.float32)
    return Classifier(module, init(module, jax.random.key(seed), image)), x


@jax.jit
def logits(model, x):
    return model(x)


def test_values_and_gradient_at_below_and_above_the_threshold():
    kappa = np.float32(0.7)
    x = jnp.asarray([-1, 0, 0.5, np.nextafter(kappa, 0), kappa, np.nextafter(kappa, 1), 3])
    np.testing.assert_array_equal(jump_relu(x, kappa), [0, 0, 0, 0, 0, x[5], 3])
    gradient = jax.vmap(jax.grad(jump_relu), (0, None))(x, kappa)
    np.testing.assert_array_equal(gradient, [0, 0, 0, 0, 0, 1, 1])
    assert jax.grad(jump_relu, 1)(1.0, 0.7) == 0
    assert jnp.isnan(jump_relu(jnp.nan, kappa))
    assert jump_relu(jnp.ones(2, jnp.bfloat16), kappa).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", NETS)
def test_without_a_threshold_it_is_the_network_and_with_a_huge_one_no_image_matters(name):
    model, x = classifier(name)
    value = jax.jit(jax.value_and_grad(lambda m, x: (m(x) ** 2).sum(), argnums=1))
    for plain, jump in zip(value(model, x), value(JumpReLU(model, 0.0), x), strict=True):
        np.testing.assert_array_equal(plain, jump)
    dead = logits(JumpReLU(model, 1e9), x)
    assert not np.allclose(dead, logits(model, x))
    np.testing.assert_allclose(dead, jnp.broadcast_to(dead[:1], dead.shape), rtol=1e-6)


def test_every_layer_is_cut_at_the_threshold():
    model, x = classifier("mlp")
    kappa, h = 0.3, np.asarray(x).reshape(3, -1)
    for i in range(3):
        dense = model.variables["params"][f"Dense_{i}"]
        h = h @ dense["kernel"] + dense["bias"][None]
        h = h if i == 2 else np.where(h > kappa, h, 0)
    np.testing.assert_allclose(logits(JumpReLU(model, kappa), x), h, rtol=1e-5, atol=1e-6)


def test_another_backward_changes_the_gradient_and_nothing_else():
    model, x = classifier("mlp")
    kappa = 0.5
    first, second, last = (model.variables["params"][f"Dense_{i}"] for i in range(3))
    grads = {}
    for backward in ("exact", "relu", "identity"):
        jump = JumpReLU(model, kappa, backward=backward)
        np.testing.assert_array_equal(logits(jump, x), logits(JumpReLU(model, kappa), x))
        slope = jax.jit(jax.grad(lambda x, jump=jump: jump(x).sum()))(x)
        grads[backward] = slope.reshape(3, -1)
    before = x.reshape(3, -1) @ first["kernel"] + first["bias"][None]
    after = jnp.where(before > kappa, before, 0) @ second["kernel"] + second["bias"][None]
    for backward, slope in {
        "exact": lambda h: (h > kappa).astype(jnp.float32),
        "relu": lambda h: (h > 0).astype(jnp.float32),
        "identity": jnp.ones_like,
    }.items():
        top = last["kernel"].sum(1)[None] * slope(after)
        expected = ((top @ second["kernel"].T) * slope(before)) @ first["kernel"].T
        np.testing.assert_allclose(grads[backward], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(grads["exact"], grads["relu"])


def test_an_attack_reaches_through_a_wall_of_dead_activations():
    """Where the threshold cuts everything off no gradient passes; with the identity's it does."""
    model, x = classifier("mlp")
    y = jnp.argmax(logits(model, x), -1)
    attack = PGD(ball=Linf(eps=0.1), steps=2)
    masked = attack.run(jax.random.key(0), JumpReLU(model, 50.0), x, y)
    assert (masked.zero_gradient == 2).all()
    open_ = JumpReLU(model, 50.0, backward="identity")
    assert (attack.run(jax.random.key(0), open_, x, y).zero_gradient == 0).all()


def test_a_model_that_calls_no_relu_is_refused():
    _, x = classifier("mlp")
    with pytest.raises(ValueError, match=r"JumpReLU: given _Function that calls no .*layers.ReLU"):
        JumpReLU(lambda x: x.reshape(3, -1), 1.0)(x)
