"""The boundary attack on linear models, where the closest adversarial image is known."""

import jax
import jax.numpy as jnp
import numpy as np
from linear import affine

from advjax import L2, Targeted, margin, replace
from advjax.attacks.boundary import Boundary, noisy_start
from advjax.attacks.core import driver

# With an eps per example, so that all of them are one compilation.
ATTACK = Boundary(ball=L2(np.full(6, np.inf, np.float32)), queries=3000)


def two_classes(rng, size=24):
    weights = jnp.asarray(rng.normal(size=(size, 2)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.2, 0.8, size=(6, 4, size // 8, 2)), jnp.float32)
    # A boundary near the middle of the box, so that noise is found on both sides.
    model = jax.tree_util.Partial(affine, weights, -weights.sum(0) / 2)
    y = jnp.argmax(model(x), axis=1).astype(jnp.int32)
    slope = np.asarray(weights[:, 0] - weights[:, 1])
    return model, x, y, -np.asarray(margin(model(x), y)), slope


def test_ends_at_the_closest_image_of_the_other_class(key):
    model, x, y, gap, slope = two_classes(np.random.default_rng(0))
    record = ATTACK.run(key, model, x, y)
    best = gap / np.linalg.norm(slope)
    assert record.success.all()
    assert (record.distance >= best * (1 - 1e-4)).all()
    assert (record.distance <= best * 1.05).all()
    assert (record.forwards <= 3001).all()


def test_every_example_has_its_own_steps(key):
    model, x, y, _, _ = two_classes(np.random.default_rng(0))
    state = driver._init(ATTACK, key, model, x, y, ATTACK.steps)
    for i in range(300):
        state = driver._step(ATTACK, np.int32(i), state, model, x, y)
    for steps in (state.spherical_step, state.source_step):
        assert len(set(np.asarray(steps).tolist())) > 1 and (steps != 0.01).all()


def test_a_finite_eps_ends_the_search(key):
    model, x, y, gap, slope = two_classes(np.random.default_rng(0))
    best = gap / np.linalg.norm(slope)
    share = np.array([0.5, 0.9, 2, 2, 3, 4], np.float32)
    attack = replace(ATTACK, ball=L2(share * best))
    record = attack.run(key, model, x, y)
    np.testing.assert_array_equal(record.success, share > 1)
    assert (record.distance <= attack.ball.eps * (1 + 1e-5)).all()
    assert (record.forwards[share > 1] < 3001).all()
    assert (record.forwards[share < 1] > 1000).all()


def test_targets_are_reached_from_images_of_theirs(tiny, key):
    _, weights, x, y = tiny
    model = jax.tree_util.Partial(affine, weights, jnp.zeros(5))
    rolled, target = jnp.roll(x, 1, axis=0), jnp.roll(y, 1)
    wanted = np.asarray(target != y)
    attack = Targeted(Boundary(queries=300, start=rolled, start_queries=20))
    record = attack.run(key, model, x, target)
    assert record.success.all() and wanted.any()
    np.testing.assert_array_equal(record.first_success, np.where(wanted, 1, 0))
    far = np.asarray(L2().size(rolled - x))
    assert (np.asarray(record.distance)[wanted] < 0.7 * far[wanted]).all()
    # Without a start the image is returned.
    model = jax.tree_util.Partial(affine, weights, jnp.array([0, 0, 0, 0, -1e6]))
    record = attack.run(key, model, x, jnp.full(8, 4, jnp.int32))
    np.testing.assert_array_equal(record.x_adv, x)
    assert not record.success.any() and (record.distance == 0).all()
    assert (record.forwards == 22).all() and (record.first_success == -1).all()
    assert np.isfinite(record.loss).all()


def test_noise_fills_any_box_and_keeps_to_the_mask(key):
    lower, upper = np.array([-2.0, 0.0], np.float32), np.array([3.0, 255.0], np.float32)
    ball = L2(lower=tuple(lower), upper=tuple(upper))
    x = jnp.broadcast_to(jnp.array([0.0, 10.0]), (5, 4, 4, 2))
    uniform = jax.random.uniform(key, (5, 35))
    pure = np.asarray(noisy_start(uniform, jnp.zeros(5, jnp.int32), ball, x))
    assert (pure >= lower).all() and (pure <= upper).all()
    np.testing.assert_allclose(pure.mean((0, 1, 2)), (lower + upper) / 2, rtol=0.25)
    later = np.asarray(noisy_start(uniform, jnp.full(5, 3), ball, x))
    assert not np.allclose(later, pure) and (later >= lower).all() and (later <= upper).all()
    mask = np.zeros(x.shape[1:], np.float32)
    mask[0] = 1
    kept = noisy_start(uniform, jnp.arange(5), replace(ball, mask=mask), x)
    np.testing.assert_array_equal(kept[:, 1:], x[:, 1:])
