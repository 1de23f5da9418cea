"""BPDA: exactly the forward values, exactly the backward gradient."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from advjax import PGD, Linf, pytree
from advjax.attacks.bpda import bpda

X = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 8, 8, 3)), jnp.float32)


def four_levels(x):
    return jnp.round(x * 3) / 3


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap])
def test_forward_is_g_and_backward_the_identity(wrap):
    through = wrap(bpda(four_levels))
    np.testing.assert_array_equal(through(X), wrap(four_levels)(X))
    out, pull = jax.vjp(through, X)
    upstream = jnp.cos(out)
    np.testing.assert_array_equal(pull(upstream)[0], upstream)


def test_backward_may_be_any_substitute():
    through = bpda(four_levels, backward=jnp.sin)
    np.testing.assert_array_equal(through(X), four_levels(X))
    np.testing.assert_allclose(jax.grad(lambda x: through(x).sum())(X), jnp.cos(X), rtol=1e-6)


def on_host(x):
    """JPEG of quality 60, there and back."""
    out = np.empty_like(x)
    for i, image in enumerate(np.asarray(x)):
        memory = io.BytesIO()
        Image.fromarray(np.uint8(np.round(image * 255))).save(memory, "JPEG", quality=60)
        out[i] = np.asarray(Image.open(memory), np.float32) / 255
    return out


def jpeg(x):
    return jax.pure_callback(on_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def test_forward_may_leave_jax():
    through = bpda(jpeg)
    out, grad = jax.jit(jax.value_and_grad(lambda x: through(x).sum()))(X)
    np.testing.assert_allclose(out, on_host(np.asarray(X)).sum(), rtol=1e-5)
    np.testing.assert_array_equal(grad, jnp.ones_like(X))


@pytree
class Defended:
    """A linear model behind a transformation of its input."""

    weights: jax.Array
    defence: object

    def __call__(self, x):
        return self.defence(x).reshape(x.shape[0], -1) @ self.weights


def test_an_attack_sees_through_a_shattered_gradient(key):
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(192, 4)), jnp.float32)
    masked = Defended(weights=weights, defence=jax.tree_util.Partial(four_levels))
    followed = Defended(weights=weights, defence=bpda(four_levels))
    y = jnp.argmax(masked(X), axis=1)
    attack = PGD(ball=Linf(0.2), steps=10, random_start=False)
    blind, seeing = attack.run(key, masked, X, y), attack.run(key, followed, X, y)
    assert not blind.success.any() and (blind.zero_gradient == 10).all()
    assert seeing.success.all()
    assert (jnp.argmax(masked(seeing.x_adv), axis=1) != y).all()


def test_weights_inside_are_data_not_constants():
    traces = []

    def scale(weight, x):
        traces.append(None)
        return jnp.round(weight * x)

    grad = jax.jit(jax.grad(lambda defence, x: defence(x).sum(), argnums=1))
    for weight in (1.0, 2.0):
        partial = jax.tree_util.Partial(scale, jnp.float32(weight))
        grad(bpda(partial, backward=jax.tree_util.Partial(jnp.multiply, jnp.float32(weight))), X)
    assert len(traces) == 1


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"bpda: given a forward function from float32\[3, 8, 8"):
        jax.grad(lambda x: bpda(lambda x: x.mean(-1))(x).sum())(X)
    with pytest.raises(TypeError, match="a model is a callable"):
        bpda(3)
