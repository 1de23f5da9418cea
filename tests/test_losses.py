import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import cross_entropy, margin


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_cross_entropy_and_its_gradient_equal_the_softmax_form(classes):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(7, classes)), jnp.float32)
    y = jnp.asarray(rng.integers(classes, size=7))
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]
    np.testing.assert_allclose(cross_entropy(logits, y), expected, rtol=1e-5, atol=1e-6)
    grad = jax.grad(lambda z: cross_entropy(z, y).sum())(logits)
    softmax = jax.nn.softmax(logits) - jax.nn.one_hot(y, classes)
    np.testing.assert_allclose(grad, softmax, rtol=1e-5, atol=1e-6)


def test_a_confident_example_keeps_a_gradient():
    """``softmax - one_hot`` is exactly zero here; 45 % of an MNIST test set is like this."""
    logits = jnp.asarray([[30.0, 0.0, -5.0]])
    grad = jax.grad(lambda z: cross_entropy(z, jnp.array([0])).sum())(logits)
    np.testing.assert_allclose(grad[0, 0], -np.exp(-30.0), rtol=1e-2)
    assert (jax.nn.softmax(logits) - jax.nn.one_hot(0, 3))[0, 0] == 0


def test_margin_is_positive_exactly_where_the_label_loses():
    logits = jnp.asarray([[1.0, 3.0], [1.0, -2.0]])
    np.testing.assert_allclose(margin(logits, jnp.array([0, 0])), [2.0, -3.0])


def test_losses_of_half_precision_logits_are_float32():
    logits = jnp.asarray([[1.0, 3.0]], jnp.bfloat16)
    assert cross_entropy(logits, jnp.array([0])).dtype == jnp.float32
    assert margin(logits, jnp.array([0])).dtype == jnp.float32
