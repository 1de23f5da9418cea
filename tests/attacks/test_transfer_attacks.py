"""The transfer family: each ingredient against its definition, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import MIM, Linf, Target
from advjax.attacks.transfer import (
    DIFGSM,
    NIFGSM,
    SIFGSM,
    TIFGSM,
    TransferFGSM,
    diverse,
    smoothed,
)
from advjax.losses import cross_entropy

BALL = Linf(0.2)


def curved(weights, x):
    """Logits whose gradient depends on the image, so that it matters where it is taken."""
    return jnp.tanh(3 * x.reshape(x.shape[0], -1) @ weights)


@pytest.fixture
def bent(tiny):
    _, weights, x, y = tiny
    return jax.tree_util.Partial(curved, 0.3 * weights), x, y


def published(model, x, y, eps, steps, mu, ahead, scales):
    """Lin et al. 2020, algorithm 1, with scaling to grey."""
    grad = jax.jit(jax.grad(lambda at: jnp.sum(cross_entropy(model(at), y))))
    adv, g, alpha = np.asarray(x), np.zeros(x.shape, np.float32), eps / steps
    for _ in range(steps):
        at = adv + alpha * mu * g if ahead else adv
        # The derivative of the copy 0.5 + (x - 0.5) / 2^i is 1 / 2^i.
        total = sum(np.asarray(grad(0.5 + (at - 0.5) / 2**i)) / 2**i for i in range(scales))
        g = mu * g + total / np.abs(total).mean(axis=(1, 2, 3), keepdims=True)
        adv = np.clip(adv + alpha * np.sign(g), 0, 1)
        adv = np.clip(adv, x - eps, x + eps)
    return adv


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: TransferFGSM(ball=BALL, steps=4), (1.0, False, 1)),
        (lambda: NIFGSM(ball=BALL, steps=4), (1.0, True, 1)),
        (lambda: SIFGSM(ball=BALL, steps=4), (1.0, True, 5)),
    ],
)
def test_steps_are_the_published_ones(make, rule, bent, key):
    model, x, y = bent
    record = make().run(key, model, x, y)
    np.testing.assert_allclose(record.x_adv, published(model, x, y, 0.2, 4, *rule), atol=1e-6)
    scales = rule[-1]
    assert (record.forwards == 4 * scales + 1).all() and (record.backwards == 4 * scales).all()


def test_with_no_ingredient_it_is_the_momentum_method(bent, key):
    model, x, y = bent
    mine = TransferFGSM(ball=BALL, steps=4)(key, model, x, y)
    np.testing.assert_allclose(
        mine, MIM(ball=BALL, steps=4, best=False)(key, model, x, y), atol=1e-6
    )


def test_constants_are_the_papers():
    assert (NIFGSM(ball=BALL).momentum, NIFGSM(ball=BALL).steps) == (1, 10)
    assert SIFGSM(ball=BALL).scales == 5 and SIFGSM(ball=BALL).nesterov
    assert (DIFGSM(ball=BALL).diversity, DIFGSM(ball=BALL).momentum) == (0.5, 0)
    assert TIFGSM(ball=BALL).kernel == 15
    np.testing.assert_allclose(NIFGSM(ball=Linf(16 / 255)).step_size, 1.6 / 255, rtol=1e-6)


def resized(image, top, left, height, width, fill):
    """Nearest neighbour by pixel centres, then padding, in loops."""
    out = np.full_like(image, fill)
    for i in range(height):
        for j in range(width):
            source = (
                int((i + 0.5) * image.shape[0] / height),
                int((j + 0.5) * image.shape[1] / width),
            )
            out[top + i, left + j] = image[source]
    return out


def test_diverse_inputs_are_resized_and_padded():
    height, width, fill = 20, 15, 0.25
    x = jax.random.uniform(jax.random.key(0), (64, height, width, 2), minval=0.5)
    keys = jax.random.split(jax.random.key(1), 64)
    out = np.asarray(jax.jit(diverse)(keys, x, 0.6, 0.7, fill))
    corners, changed = set(), 0
    for image, new in zip(np.asarray(x), out, strict=True):
        rows = np.flatnonzero((np.abs(new - fill) > 1e-3).any(axis=(1, 2)))
        columns = np.flatnonzero((np.abs(new - fill) > 1e-3).any(axis=(0, 2)))
        sizes = len(rows), len(columns)
        expected = resized(image, rows[0], columns[0], *sizes, fill)
        np.testing.assert_allclose(new, expected, atol=1e-6)
        if sizes != (height, width):
            changed += 1
            assert 14 <= sizes[0] < 20 and 10 <= sizes[1] < 15
            corners.add((rows[0], columns[0]))
    assert 25 <= changed <= 52  # 64 draws of probability 0.6
    assert len(corners) > 10
    np.testing.assert_array_equal(diverse(keys, x, 0.0, 0.7, fill), x)


def test_diversity_draws_for_each_example_and_step(bent, key):
    model, x, y = bent
    one = DIFGSM(ball=BALL, steps=3, diversity=1.0, smallest=0.5)
    assert (one(key, model, x, y) != one(jax.random.key(1), model, x, y)).any()
    twice = jnp.concatenate([x[:1], x[:1]])
    x_adv = one(key, model, twice, jnp.concatenate([y[:1], y[:1]]))
    assert (x_adv[0] != x_adv[1]).any()


def test_the_gradient_is_smoothed_by_the_published_gaussian():
    line = np.exp(-0.5 * np.linspace(-3, 3, 15) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    grad = np.random.default_rng(0).normal(size=(2, 70, 64, 2)).astype(np.float32)
    padded = np.pad(grad, ((0, 0), (7, 7), (7, 7), (0, 0)))
    expected = sum(
        kernel[i, j] * padded[:, i : i + 70, j : j + 64] for i in range(15) for j in range(15)
    )
    np.testing.assert_allclose(jax.jit(smoothed, static_argnums=1)(grad, 15), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "kernel"), [(7, 1), (28, 7), (64, 15)])
def test_the_kernel_shrinks_with_the_image(size, kernel):
    dot = np.zeros((1, size, size, 1), np.float32)
    dot[0, size // 2, size // 2] = 1
    spread = np.asarray(jax.jit(smoothed, static_argnums=1)(dot, 15))
    assert (spread[0, :, size // 2, 0] > 0).sum() == kernel
    np.testing.assert_allclose(spread.sum(), 1, rtol=1e-5)


def test_numbers_are_one_trace(tiny, traces, key):
    model, _, x, y = tiny
    SIFGSM(ball=BALL, steps=2, scales=2, diversity=0.5)(key, model, x, y)
    before = len(traces)
    SIFGSM(
        ball=Linf(0.1), steps=3, scales=2, diversity=0.9, smallest=0.5, center=0.0, momentum=0.5
    )(key, model, x, y)
    assert len(traces) == before


def test_targeted_lowers_the_loss_of_the_target(bent, key):
    model, x, y = bent
    target = (y + 1) % 5
    for attack in (NIFGSM(ball=BALL), TIFGSM(ball=BALL), DIFGSM(ball=BALL)):
        record = attack.with_goal(Target()).run(key, model, x, target)
        assert (-record.loss < cross_entropy(model(x), target)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NIFGSM(ball=Linf()), "given Linf.*expected a finite eps"),
        (lambda: SIFGSM(ball=BALL, scales=0), "given scales=0; expected an integer >= 1"),
        (lambda: TIFGSM(ball=BALL, kernel=4), "given kernel=4; expected an odd integer"),
        (lambda: DIFGSM(ball=BALL, diversity=1.5), "given diversity=1.5; expected 0 to 1"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_flat_inputs_are_taken_where_no_image_is_needed(key):
    model, x, y = (lambda x: x[:, :3]), jnp.full((2, 5), 0.5), jnp.zeros(2, jnp.int32)
    assert NIFGSM(ball=BALL)(key, model, x, y).shape == (2, 5)
    with pytest.raises(ValueError, match=r"given images of shape \(2, 5\).*\[B, H, W, C\]"):
        TIFGSM(ball=BALL)(key, model, x, y)
