"""GradAlign: cosine and gradient in closed form, images that do not count, the draw of the ball."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_net import BATCH, KEYS, W, X, Y, linear, run

from advjax.answers import fold_in_each
from advjax.attacks import FGSM
from advjax.balls import Linf
from advjax.training import Madry
from advjax.training.objectives.grad_align import GradAlign
from advjax.types import Net

RNG = np.random.default_rng(1)
UNIT = jax.jit(lambda: Linf(eps=1.0).sample(fold_in_each(KEYS, 2), X))()  # the draw of a neighbour
MADRY = Madry(FGSM(ball=Linf(eps=0.5)))


def gradients(x, w, y=Y):
    """Of the cross-entropy in float64; the label's part is minus the others', not one less."""
    z = np.float64(x).reshape(6, 16) @ w
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    p[np.arange(6), y] = 0
    p[np.arange(6), y] = -p.sum(axis=-1)
    return p @ w.T


def cosines(w, first=None, *, x=X, y=Y, eps=0.5):
    """In float64, at x and at a uniform draw of the ball around it; the first may be held fixed."""
    near = x + eps * np.float64(UNIT)
    a, b = gradients(x, w if first is None else first, y), gradients(near, w, y)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_the_term_is_one_minus_the_mean_cosine():
    (plain, _), _ = run(MADRY, W, KEYS, BATCH)
    (loss, aux), _ = run(GradAlign(MADRY), W, KEYS, BATCH)
    misaligned = 1 - cosines(np.float64(W)).mean()
    assert misaligned > 0.01
    assert float(aux.metrics["misalignment"]) == pytest.approx(misaligned, rel=1e-4)
    assert float(loss) == pytest.approx(float(plain) + 0.2 * misaligned, rel=1e-5)
    assert "robust_accuracy" in aux.metrics


def test_its_gradient_flows_through_the_neighbours_gradient_alone():
    grads = [run(GradAlign(MADRY, weight=v), W, KEYS, BATCH)[1] for v in (1.0, 0.0)]
    along, w = RNG.normal(size=W.shape), np.float64(W)
    value = lambda h: 1 - cosines(w + h * along, first=w).mean()
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert float(np.sum((grads[0] - grads[1]) * along)) == pytest.approx(slope, rel=1e-3)


class Gated:
    """Linear on images that are bright enough, constant on the others."""

    def __init__(self, axis_name=None):
        self.axis_name = axis_name

    def __call__(self, params, stats, x, *, key=None, train=False):
        flat = x.reshape(x.shape[0], -1)
        seen = jnp.sum(flat, axis=1, keepdims=True) > 4
        return jnp.where(seen, flat, 0) @ params, stats


BRIGHT = np.asarray([1, 0, 1, 1, 0, 0], bool)
DARK = np.where(BRIGHT[:, None, None, None], X, 0)
NARROW = GradAlign(Madry(FGSM(ball=Linf(eps=0.2))))


def misalignment(apply, w, keys, x, y):
    return NARROW.term(Net(keys, apply, w, {}), {"x": x, "y": y})["misalignment"]


def test_images_without_a_gradient_do_not_count():
    """Nor on which device the others are: the mean of two shards, with two of them and with one."""
    expected = 1 - cosines(np.float64(W), x=DARK, eps=0.2)[BRIGHT].mean()
    assert expected > 1e-3
    value_and_grad = jax.value_and_grad(lambda w, *a: misalignment(Gated(), w, *a))
    value, grad = jax.jit(value_and_grad)(W, KEYS, DARK, Y)
    assert float(value) == pytest.approx(expected, abs=1e-6)
    assert np.isfinite(grad).all()
    shard = lambda v: v.reshape(2, 3, *v.shape[1:])
    call = jax.vmap(lambda *a: misalignment(Gated("batch"), W, *a), axis_name="batch")
    split = jax.jit(lambda *a: call(*map(shard, a)))(KEYS, DARK, Y)
    assert float(split.mean()) == pytest.approx(expected, abs=1e-6)


def test_confident_images_count_and_their_gradients_stay_finite():
    """The product of their squared lengths is zero in float32; the gradients are not."""
    w, right = np.float64(40 * W), np.argmax(X.reshape(6, 16) @ W, axis=1)
    near = X + 0.2 * np.float64(UNIT)
    largest = [abs(gradients(x, w, right)).max(axis=1) for x in (X, near)]
    counts = np.min(largest, axis=0) > 1e-30
    assert counts.sum() >= 3 and (np.prod(largest, axis=0)[counts] < 1e-25).any()
    value_and_grad = jax.value_and_grad(lambda w: misalignment(linear, w, KEYS, X, right))
    value, grad = jax.jit(value_and_grad)(np.float32(w))
    mean = lambda v: 1 - cosines(v, first=w, y=right, eps=0.2)[counts].mean()
    assert mean(w) > 1e-3 and float(value) == pytest.approx(mean(w), rel=1e-3)
    for along in RNG.normal(size=(3, *W.shape)):
        slope = (mean(w + 1e-4 * along) - mean(w - 1e-4 * along)) / 2e-4
        assert float(np.sum(grad * along)) == pytest.approx(slope, rel=1e-2)
    (loss, _), whole = run(GradAlign(MADRY), np.float32(w), KEYS, {"x": X, "y": right})
    assert np.isfinite(loss) and np.isfinite(whole).all()


def test_without_a_gradient_nothing_is_misaligned():
    found = run(GradAlign(MADRY), 0 * W, KEYS, BATCH)
    assert float(found[0][1].metrics["misalignment"]) == 0
