"""Convolution, pooling and Dropout against plain XLA and against hand computations."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from advjax.models import Dropout, avg_pool, conv_general_dilated, max_pool

LAYOUT = ("NHWC", "HWIO", "NHWC")


def rand(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def conv_with(function, strides, padding):
    return lambda x, w: function(x, w, strides, padding, dimension_numbers=LAYOUT)


@jax.jit
def same(a, b):
    return jax.tree.map(lambda p, q: jnp.abs(p - q).max() / (jnp.abs(q).max() + 1e-9), a, b)


CASES = [
    # (height, width), (kernel), channels in, out, strides, padding
    ((6, 6), (3, 3), 2, 3, (1, 1), "SAME"),
    ((7, 5), (3, 3), 16, 16, (1, 1), ((1, 1), (1, 1))),
    ((7, 8), (5, 5), 1, 4, (1, 1), "SAME"),
    ((7, 8), (4, 4), 1, 4, (2, 2), ((1, 1), (1, 1))),
    ((8, 8), (4, 4), 8, 8, (2, 2), ((1, 1), (1, 1))),
    ((9, 7), (3, 3), 3, 4, (2, 2), "SAME"),
    ((9, 8), (3, 2), 3, 4, (2, 1), "VALID"),
    ((9, 9), (7, 7), 3, 4, (2, 2), ((3, 3), (3, 3))),
    ((6, 7), (3, 3), 2, 2, (1, 1), ((0, 2), (3, 1))),
    ((6, 7), (1, 1), 5, 7, (1, 1), "VALID"),
    ((7, 8), (1, 1), 5, 7, (2, 2), "VALID"),
    # the other forms: several pixels at once, all taps at once, padded channels, turned images
    ((6, 6), (3, 3), 1, 16, (1, 1), "SAME"),
    ((7, 9), (3, 3), 8, 8, (1, 1), "SAME"),
    ((9, 8), (3, 2), 3, 4, (2, 1), ((1, 0), (2, 3))),
    ((6, 7), (5, 3), 9, 1, (1, 1), ((1, 3), (2, 0))),
    ((5, 5), (3, 3), 18, 2, (1, 1), "VALID"),
    ((5, 4), (3, 3), 17, 16, (1, 1), "SAME"),
    ((4, 3), (3, 3), 24, 28, (1, 1), ((0, 2), (1, 1))),
    ((4, 5), (3, 3), 24, 28, (2, 2), ((0, 2), (1, 1))),
    ((8, 8), (2, 2), 3, 4, (3, 3), "VALID"),
    ((6, 6), (1, 1), 3, 4, (1, 1), ((1, 1), (0, 0))),
]


@pytest.mark.parametrize("size, kernel, c, f, strides, padding", CASES)
def test_convolution_has_the_value_and_gradients_of_plain_xla(size, kernel, c, f, strides, padding):
    x, w = rand(0, (2, *size, c)), rand(1, (*kernel, c, f))
    fast = conv_with(conv_general_dilated, strides, padding)
    plain = conv_with(lax.conv_general_dilated, strides, padding)
    dy = rand(2, jax.eval_shape(plain, x, w).shape)

    @partial(jax.jit, static_argnums=0)
    def results(conv, x, w):
        value, back = jax.vjp(conv, x, w)
        # one order more: the gradient of the input gradient's square
        again = jax.grad(lambda x, w: (jax.vjp(conv, x, w)[1](dy)[0] ** 2).sum(), 1)(x, w)
        return value, *back(dy), again

    errors = same(results(fast, x, w), results(plain, x, w))
    assert max(map(float, errors)) < 3e-6, errors


def test_convolution_maps_over_examples_and_over_kernels():
    x, w = rand(0, (3, 6, 6, 2)), rand(1, (3, 3, 2, 4))
    fast = conv_with(conv_general_dilated, (2, 2), "SAME")
    grad = jax.grad(lambda x, w: (fast(x, w) ** 2).sum(), (0, 1))
    dx, dw = jax.jit(grad)(x, w)
    one = jax.jit(jax.vmap(lambda x, w: grad(x[None], w), (0, None)))(x, w)
    np.testing.assert_allclose(one[0][:, 0], dx, atol=2e-5)
    np.testing.assert_allclose(one[1].sum(0), dw, atol=2e-4)
    two = jax.jit(jax.vmap(grad, (None, 0)))(x, jnp.stack([w, 2 * w]))
    np.testing.assert_allclose(two[0], jnp.stack([dx, 4 * dx]), rtol=1e-4, atol=1e-4)


def test_convolution_gradient_in_a_loop_body_stays_in_the_fast_layout():
    """Inside a loop XLA:CPU is fast only on NHWC/HWIO convolutions: no other layout may appear."""
    w = rand(1, (3, 3, 16, 16))

    def walk(conv, x):
        grad = jax.grad(lambda x: conv(x, w).sum())
        return lax.fori_loop(0, 3, lambda _, x: x - 0.1 * grad(x) / 100, x)

    x = rand(0, (2, 8, 8, 16))
    fast = jax.jit(partial(walk, conv_with(conv_general_dilated, (1, 1), "SAME")))
    plain = jax.jit(partial(walk, conv_with(lax.conv_general_dilated, (1, 1), "SAME")))
    np.testing.assert_allclose(fast(x), plain(x), rtol=1e-5, atol=1e-6)
    text = fast.lower(x).compile().as_text()
    labels = {
        line.split("dim_labels=")[1].split(",")[0].split()[0]
        for line in text.splitlines()
        if "dim_labels=" in line
    }
    assert labels <= {"b01f_01io->b01f"}, labels


@pytest.mark.parametrize("kw", [{"rhs_dilation": (2, 2)}, {"feature_group_count": 2}])
def test_convolution_leaves_dilation_and_groups_to_xla(kw):
    x, w = rand(0, (2, 8, 8, 4)), rand(1, (3, 3, 4 // kw.get("feature_group_count", 1), 6))
    args = (x, w, (1, 1), "SAME")
    np.testing.assert_array_equal(
        conv_general_dilated(*args, dimension_numbers=LAYOUT, **kw),
        lax.conv_general_dilated(*args, dimension_numbers=LAYOUT, **kw),
    )


def test_convolution_of_the_lecture_exercise_is_exact():
    x = jnp.array([[1, 0.5, 20], [0.25, 0, 0], [0, 0, 20]]).reshape(1, 3, 3, 1)
    w = jnp.array([[1, 0.2], [0.2, 0]]).reshape(2, 2, 1, 1)
    out = conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=LAYOUT)
    np.testing.assert_allclose(out[0, :, :, 0], [[1.15, 4.5], [0.25, 0]], rtol=1e-6)


def test_pooling_of_the_lecture_exercise_is_exact():
    x = jnp.array([[4.0, 10, 5], [5, 7, 4], [-2, 3, 7]]).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(max_pool(x, (2, 2), (1, 1))[0, :, :, 0], [[10, 10], [7, 7]])
    np.testing.assert_array_equal(
        avg_pool(x, (2, 2), (1, 1))[0, :, :, 0], [[6.5, 6.5], [3.25, 5.25]]
    )


@pytest.mark.parametrize(
    "size, window, strides, padding",
    [
        ((6, 8), (2, 2), None, "VALID"),
        ((7, 5), (2, 2), None, "VALID"),
        ((7, 5), (2, 2), None, "SAME"),
        ((7, 6), (3, 2), None, "VALID"),
        ((6, 6), (2, 2), None, ((1, 1), (0, 2))),
        ((7, 7), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((4, 4), (1, 1), None, "VALID"),
    ],
)
def test_max_pool_has_the_value_and_gradient_of_plain_xla_at_ties_too(
    size, window, strides, padding
):
    x = nn.relu(jnp.round(rand(0, (2, *size, 3))))  # few values: most windows have ties
    dy = rand(1, jax.eval_shape(lambda x: max_pool(x, window, strides, padding), x).shape)

    def results(pool):
        out, back = jax.vjp(pool, x)
        return out, back(dy)[0]

    fast = results(lambda x: max_pool(x, window, strides, padding))
    plain = results(lambda x: nn.max_pool(x, window, strides or window, padding))
    jax.tree.map(np.testing.assert_array_equal, fast, plain)


def test_max_pool_has_forward_mode_and_second_order_and_keeps_nan():
    x, v = rand(0, (1, 4, 4, 2)), rand(1, (1, 4, 4, 2))
    _, forward = jax.jvp(max_pool, (x,), (v,))
    back = jax.vjp(max_pool, x)[1](jnp.ones_like(forward))[0]
    np.testing.assert_allclose(forward.sum(), (back * v).sum(), rtol=1e-5)
    hvp = jax.jvp(jax.grad(lambda x: (max_pool(x) ** 2).sum()), (x,), (v,))[1]
    np.testing.assert_allclose(hvp, 2 * back * v, rtol=1e-5)
    for place in range(4):
        broken = x[:, :2, :2].reshape(1, 4, 2).at[:, place].set(jnp.nan).reshape(1, 2, 2, 2)
        assert np.isnan(max_pool(broken)).all()


def test_dropout_rate_is_data_and_maps():
    layer, x = Dropout(0.5), jnp.ones((2, 500))
    traces = []

    @jax.jit
    def drop(rate):
        traces.append(1)
        variables = {"hyper": {"rate": rate}}
        return layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})

    for rate in (0.0, 0.3, 0.7):
        out = drop(jnp.float32(rate))
        assert abs(float((out == 0).mean()) - rate) < 0.07
        assert float(out.max()) == pytest.approx(1 / (1 - rate), rel=1e-5)
    assert len(traces) == 1
    rates = jnp.array([0.0, 0.7])
    np.testing.assert_array_equal(jax.vmap(drop)(rates)[1], drop(rates[1]))
    variables = layer.init(jax.random.key(1), x)
    assert variables["hyper"]["rate"] == 0.5
    assert layer.apply(variables, x) is x
    with pytest.raises(ValueError, match="0 <= rate < 1"):
        Dropout(1.0).init(jax.random.key(0), x)


def test_dropout_draws_belong_to_the_example_whatever_the_devices_and_the_batch():
    x, variables = jnp.ones((8, 5, 6)), {"hyper": {"rate": jnp.float32(0.5)}}
    rngs = {"dropout": jax.random.key(3)}
    whole = Dropout(0.5).apply(variables, x, train=True, rngs=rngs)
    half = Dropout(0.5).apply(variables, x[:4], train=True, rngs=rngs)
    np.testing.assert_array_equal(whole[:4], half)
    for devices in (2, 4):
        if jax.local_device_count() < devices:
            pytest.skip(f"{devices} devices are needed; there are {jax.local_device_count()}")
        split = jax.pmap(
            lambda x: Dropout(0.5, "batch").apply(variables, x, train=True, rngs=rngs), "batch"
        )(x.reshape(devices, -1, 5, 6))
        np.testing.assert_array_equal(whole, split.reshape(x.shape))
