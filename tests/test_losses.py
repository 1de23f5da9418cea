import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import cross_entropy, margin
from advjax.losses import dlr, targeted_dlr


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
    assert (jax.nn.softmax(logits) - jax.nn.one_hot(0, 3)[None])[0, 0] == 0


def test_margin_is_positive_exactly_where_the_label_loses():
    logits = jnp.asarray([[1.0, 3.0], [1.0, -2.0]])
    np.testing.assert_allclose(margin(logits, jnp.array([0, 0])), [2.0, -3.0])


def test_losses_of_half_precision_logits_are_float32():
    logits = jnp.asarray([[1.0, 3.0]], jnp.bfloat16)
    assert cross_entropy(logits, jnp.array([0])).dtype == jnp.float32
    assert margin(logits, jnp.array([0])).dtype == jnp.float32


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_dlr_does_not_feel_scale_and_shift(classes):
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(200, classes)), jnp.float32)
    y, target = jnp.asarray(rng.integers(classes, size=(2, 200)))
    for a, b in ((0.01, 0.0), (30.0, -5.0), (1e3, 1e3)):
        other = a * logits + b
        np.testing.assert_allclose(dlr(other, y), dlr(logits, y), rtol=2e-3, atol=2e-3)
        expected = targeted_dlr(logits, y, target)
        np.testing.assert_allclose(targeted_dlr(other, y, target), expected, rtol=2e-3, atol=2e-3)
    assert (jnp.abs(cross_entropy(2 * logits, y) - cross_entropy(logits, y)) > 0.01).any()


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_dlr_is_minus_one_to_zero_exactly_where_the_label_wins(classes):
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(500, classes)), jnp.float32)
    y = jnp.asarray(rng.integers(classes, size=500))
    loss, right = np.asarray(dlr(logits, y)), np.asarray(jnp.argmax(logits, axis=1) == y)
    np.testing.assert_array_equal((loss >= -1) & (loss < 0), right)
    np.testing.assert_array_equal(loss > 0, ~right)
    assert classes == 3 or loss.max() > 1  # else unbounded above


def test_dlr_by_hand():
    logits = jnp.asarray([[1.0, 4.0, 2.0, 0.0]] * 3)
    y = jnp.asarray([1, 2, 3])
    np.testing.assert_allclose(dlr(logits, y), [-2 / 3, 2 / 3, 4 / 3], rtol=1e-6)
    target = jnp.asarray([2, 1, 0])
    expected = np.array([-2, 2, 1]) / (4 - 0.5)
    np.testing.assert_allclose(targeted_dlr(logits, y, target), expected, rtol=1e-6)
    expected = np.array([-2, 2]) / (4 - 1.5)
    found = targeted_dlr(logits[:2, :3], y[:2], target[:2])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_with_two_classes_dlr_is_the_margin():
    logits = jnp.asarray([[1.0, 3.0], [1.0, -2.0]])
    y = jnp.array([0, 0])
    np.testing.assert_allclose(dlr(logits, y), [2.0, -3.0])
    np.testing.assert_allclose(targeted_dlr(logits, y, 1 - y), [2.0, -3.0])
    grad = jax.grad(lambda z: dlr(z, y).sum())(logits)
    np.testing.assert_allclose(grad, [[-1.0, 1.0], [-1.0, 1.0]])


def test_with_three_classes_every_target_has_a_gradient():
    """The largest minus the third logit, as a spread, would make the last class's loss -1."""
    logits, y = jnp.asarray([[3.0, 1.0, -2.0]] * 2), jnp.array([0, 0])
    grad = jax.grad(lambda z: targeted_dlr(z, y, jnp.array([1, 2])).sum())(logits)
    assert (jnp.abs(grad).max(axis=1) > 0.1).all()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_dlr_of_equal_logits_is_finite_with_its_gradient(classes):
    logits, y = jnp.ones((2, classes)), jnp.array([0, 1])
    for loss in (dlr, lambda z, y: targeted_dlr(z, y, 1 - y)):
        value, grad = jax.value_and_grad(lambda z, loss=loss: loss(z, y).sum())(logits)
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_gradients_of_dlr_are_those_of_the_formula():
    rng = np.random.default_rng(3)
    logits, y = rng.normal(size=(5, 6)), rng.integers(6, size=5)
    target = (y + 1) % 6

    def formula(z):
        ranked = np.sort(z, axis=1)[:, ::-1]
        of = lambda which: z[np.arange(5), which]
        other = np.where(z.argmax(1) == y, ranked[:, 1], ranked[:, 0])
        untargeted = -(of(y) - other) / (ranked[:, 0] - ranked[:, 2])
        spread = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
        return untargeted, -(of(y) - of(target)) / spread

    for i, loss in enumerate((dlr, lambda z, y: targeted_dlr(z, y, target))):
        found = jax.grad(lambda z, loss=loss: loss(z, jnp.asarray(y)).sum())(jnp.asarray(logits))
        expected = np.zeros((5, 6))
        for j in range(6):
            h = 1e-6 * (np.arange(6) == j)
            expected[:, j] = (formula(logits + h)[i] - formula(logits - h)[i]) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
