"""Interval bounds: closed forms of linear networks, and nothing found outside on any network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import Classifier, create, init
from advjax.attacks import PGD
from advjax.balls import L2, Linf
from advjax.defences.interval_bounds import bounds, certified, worst_margins
from advjax.defences.jump_relu import JumpReLU
from advjax.defences.smoothing import Smoothed

# Between them: dense, padded, strided and 1x1 convolutions, both max-pools, means, BatchNorm,
# residual and dense connections, normalised pixels.
NETS = {
    "mlp": ((3, 2, 1), {"hidden": (5, 4)}),
    "lenet5": ((6, 5, 1), {"filters": (2, 3), "width": 4}),
    "densenet48": ((4, 5, 2), {"blocks": 1, "filters": 4, "batch_norm": True, "dropout": 0.5}),
    "preact_resnet18": ((4, 4, 1), {"stages": (1,), "width": 2}),
    "resnet34": ((8, 8, 1), {"stages": (1,), "width": 2, "stem": "imagenet"}),
}
RNG = np.random.default_rng(0)


def classifier(name, images=4):
    image, fields = NETS[name]
    module = create(name, classes=3, mean=(0.5,), std=(0.25,), **fields)
    variables = init(module, jax.random.key(1), image)
    leaves, treedef = jax.tree.flatten(variables)
    moved = [a * RNG.uniform(0.5, 1.5, a.shape) + 0.02 for a in leaves]  # BatchNorm's numbers too
    variables = jax.tree.unflatten(treedef, [jnp.asarray(a, jnp.float32) for a in moved])
    return Classifier(module, variables), jnp.asarray(RNG.random((images, *image)), jnp.float32)


@pytest.mark.parametrize("name", [name for name in NETS if name != "mlp"])
def test_no_point_and_no_attack_leaves_the_bounds(name):
    model, x = classifier(name, images=4)
    logits = jax.jit(lambda m, x: m(x))
    y = jnp.argmax(logits(model, x), -1)
    eps = 0.003
    lower, upper = bounds(model, x - eps, x + eps)
    assert (lower <= logits(model, x)).all() and (logits(model, x) <= upper).all()
    # 10,000 points, half of them corners, in one batch: rounding is another than alone.
    draws = RNG.uniform(-1, 1, (2500, *x.shape))
    draws[::2] = np.sign(draws[::2])
    points = jnp.asarray(np.asarray(x) + eps * draws, jnp.float32).clip(
        (x - eps)[None], (x + eps)[None]
    )
    found = logits(model, points.reshape(-1, *x.shape[1:])).reshape(2500, 4, 3)
    assert (found >= lower[None]).all() and (found <= upper[None]).all()
    worst = worst_margins(model, x - eps, x + eps, y)
    margins = found - jnp.take_along_axis(found, y[None, :, None], -1)
    assert (margins <= worst[None]).all()
    # Of a single point, what is left is the room for rounding.
    lower, upper = bounds(model, x, x)
    assert (lower < upper).all() and (upper - lower < 0.02 * jnp.abs(found).max()).all()
    lower, upper = bounds(model, x - eps, x + eps)
    safe = certified(model, Linf(eps), x, y)
    attack = PGD(ball=Linf(eps), step_size=eps / 2, steps=2, best=False)
    adv = attack.run(jax.random.key(0), model, x, y)
    assert not (safe & adv.success).any()
    reached = logits(model, adv.x_adv)
    inside = (adv.x_adv >= x - eps) & (adv.x_adv <= x + eps)
    assert inside.all() and (reached >= lower).all() and (reached <= upper).all()
    assert not certified(model, Linf(1.0), x, y).all()


def linear_model():
    model, x = classifier("mlp")
    module = create("mlp", classes=3, hidden=())
    kernel, bias = RNG.normal(size=(6, 3)), RNG.normal(size=3)
    dense = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return Classifier(module, {"params": {"Dense_0": dense}}), x, kernel, bias


def test_a_linear_layer_has_the_bounds_of_its_absolute_weights():
    model, x, kernel, bias = linear_model()
    flat = np.asarray(x, np.float64).reshape(4, -1)
    centre, radius = flat @ kernel + bias, 0.1 * np.abs(kernel).sum(0)
    lower, upper = bounds(model, x - 0.1, x + 0.1)
    np.testing.assert_allclose(lower, centre - radius, atol=3e-5)
    np.testing.assert_allclose(upper, centre + radius, atol=3e-5)
    # The difference of two logits is one linear layer, which their separate bounds do not know.
    y = jnp.asarray([0, 2, 1, 1])
    difference = kernel[:, None] - kernel[:, :, None].transpose(0, 1, 2)
    margins = np.stack(
        [
            (flat[i] @ difference[:, k] + bias - bias[k] + 0.1 * np.abs(difference[:, k]).sum(0))
            for i, k in enumerate(np.asarray(y))
        ]
    )
    found = worst_margins(model, x - 0.1, x + 0.1, y)
    np.testing.assert_allclose(found, margins, atol=5e-5)
    assert (np.asarray(found)[np.arange(4), y] == 0).all()
    # The certificate is exact for a linear model: it ends where the closed form says.
    label = jnp.argmax(model(x), -1)
    gap = np.sort(centre, -1)[:, -1:] - centre
    length = np.abs(kernel[:, label].T[..., None] - kernel).sum(1)
    eps = np.where(gap > 0, gap / np.where(length > 0, length, 1), np.inf).min(-1)
    box = {"lower": -10.0, "upper": 10.0}
    assert certified(model, Linf(eps * 0.999, **box), x, label).all()
    assert not certified(model, Linf(eps * 1.001, **box), x, label).any()


def test_bounds_hold_for_float32_and_for_real_arithmetic_where_rounding_is_large():
    kernel = RNG.normal(size=(300, 2)) * 1e3
    kernel[150:] = -kernel[:150]
    x = np.repeat(RNG.random((3, 150)), 2, axis=0).reshape(3, 2, 150).reshape(3, 300)
    x32, kernel32 = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    model = jax.tree_util.Partial(lambda w, x: jnp.maximum(x @ w, -1e9) - 0.1, kernel32)
    exact = np.asarray(x32, np.float64) @ np.asarray(kernel32, np.float64) - np.float32(0.1)
    lower, upper = bounds(model, x32, x32)
    assert (lower <= exact).all() and (exact <= upper).all()
    assert (lower <= model(x32)).all() and (model(x32) <= upper).all()
    assert (upper - lower > 0).all() and (upper - lower < 100).all()  # of terms that add to 2e5


def test_maxima_minima_clips_and_jumps_have_exact_bounds():
    x = jnp.asarray([[-1.0, 0.2, 0.4, 2.0]])
    ends = (x - 0.3, x + 0.3)
    same = lambda f, g: np.testing.assert_array_equal(bounds(f, *ends), [g(ends[0]), g(ends[1])])
    for f in (
        lambda x: jnp.where(x >= 0.25, x, 0.25),
        lambda x: (lambda x, y: jnp.where(x < y, x, y))(x, x[:, ::-1]),
        lambda x: jnp.clip(jax.checkpoint(jax.nn.relu)(x), 0.1, 0.5),
        lambda x: jnp.pad(jnp.round(x[:, 1:]), ((0, 0), (0, 1)), constant_values=-jnp.inf),
    ):
        same(f, f)
    jump = lambda x: jnp.where(x <= 0.25, 0, x)
    # Below, across and above the threshold.
    np.testing.assert_array_equal(bounds(jump, *ends)[0], [[0, 0, 0, ends[0][0, 3]]])
    np.testing.assert_array_equal(bounds(jump, *ends)[1], [[0, *ends[1][0, 1:]]])
    product = lambda x: (1 - x) * x / -2 + x.sum(1, keepdims=True)
    lower, upper = bounds(product, *ends)
    for t in np.linspace(-0.3, 0.3, 7, dtype=np.float32):
        assert (lower <= product(x + t)).all() and (product(x + t) <= upper).all()


def test_jump_relu_is_bounded_too():
    model, x = classifier("mlp")
    jump = JumpReLU(model, 0.3)
    lower, upper = bounds(jump, x - 0.05, x + 0.05)
    logits = jax.jit(jump)
    for _ in range(50):
        found = logits(x + jnp.asarray(RNG.uniform(-0.05, 0.05, x.shape), jnp.float32))
        assert (found >= lower).all() and (found <= upper).all()


def test_masks_and_radii_per_example_are_kept_and_the_wrong_label_is_never_certified():
    model, x, kernel, bias = linear_model()
    y = jnp.argmax(model(x), -1)
    assert certified(model, Linf(0.0), x, y).all() and certified(model, Linf(1e-4), x, y).all()
    assert not certified(model, Linf(0.0), x, (y + 1) % 3).any()
    each = jnp.asarray([0.0, 1.0, 0.0, 1.0])
    assert certified(model, Linf(each), x, y).tolist() == [True, False, True, False]
    assert certified(model, Linf(1.0, mask=jnp.zeros_like(x)), x, y).all()


def test_new_weights_radii_and_labels_are_one_trace():
    traced = []

    def network(w, x):
        traced.append(None)
        return x.reshape(x.shape[0], -1) @ w

    x = jnp.ones((2, 3))
    for i, eps in enumerate((0.1, 0.2, 0.3)):
        model = jax.tree_util.Partial(network, jnp.ones((3, 2)) * i)
        certified(model, Linf(eps), x, jnp.asarray([i % 2, 0]))
    assert len(traced) == 1


def test_overflow_is_an_infinite_bound():
    model = lambda x: (x * 1e38) * 1e10 - (x * 1e38) * 1e10
    lower, upper = bounds(model, jnp.ones((1, 2)), jnp.ones((1, 2)))
    assert (lower == -jnp.inf).all() and (upper == jnp.inf).all()
    assert not certified(model, Linf(0.0), jnp.ones((1, 2)), jnp.asarray([0])).any()


def test_what_cannot_be_bounded_is_refused_by_name(tiny, key):
    model, _, x, y = tiny
    with pytest.raises(NotImplementedError, match=r"bounds: the network contains 'sin'; taken are"):
        bounds(lambda x: jnp.sin(x), jnp.zeros((1, 2)), jnp.ones((1, 2)))
    with pytest.raises(NotImplementedError, match=r"contains 'dot_general' of two values"):
        bounds(lambda x: x @ x.T, jnp.zeros((1, 2)), jnp.ones((1, 2)))
    with pytest.raises(NotImplementedError, match=r"divides by what depends on the image"):
        bounds(lambda x: x / x, jnp.ones((1, 2)), jnp.ones((1, 2)))
    with pytest.raises(NotImplementedError, match=r"computes in bfloat16; expected float32"):
        bounds(lambda x: x.astype(jnp.bfloat16), jnp.ones((1, 2)), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"bounds: given Smoothed, which is randomised"):
        bounds(Smoothed(model, 0.1), x, x)
    with pytest.raises(TypeError, match=r"certified: given ball=L2.*; expected Linf"):
        certified(model, L2(0.1), x, y)
