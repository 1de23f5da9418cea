"""HopSkipJump on linear models, where the closest adversarial image is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import affine

from advjax import L2, Linf, Targeted, margin, replace
from advjax.attacks.core import driver
from advjax.attacks.hop_skip_jump import HopSkipJump

# With an eps per example, so that all of them are two compilations.
BALLS = {"l2": L2(np.full(6, np.inf, np.float32)), "linf": Linf(np.full(6, np.inf, np.float32))}
QUERIES = 2500


@pytest.fixture(scope="module")
def two_classes():
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(24, 2)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.2, 0.8, size=(6, 4, 3, 2)), jnp.float32)
    # A boundary near the middle of the box, so that noise is found on both sides.
    model = jax.tree_util.Partial(affine, weights, -weights.sum(0) / 2)
    y = jnp.argmax(model(x), axis=1).astype(jnp.int32)
    slope = np.asarray(weights[:, 0] - weights[:, 1])
    return model, x, y, -np.asarray(margin(model(x), y)), slope


@pytest.mark.parametrize("name", BALLS)
def test_ends_at_the_closest_image_of_the_other_class(name, two_classes, key):
    model, x, y, gap, slope = two_classes
    best = gap / (np.linalg.norm(slope) if name == "l2" else np.abs(slope).sum())
    attack = HopSkipJump(ball=BALLS[name], queries=QUERIES)
    record = attack.run(key, model, x, y)
    assert record.success.all()
    assert (record.distance >= best * (1 - 1e-4)).all()
    assert (record.distance <= best * 1.06).all(), record.distance / best
    assert (record.forwards <= QUERIES + 1).all()
    assert (record.forwards > QUERIES - 150).all()
    # A finite eps ends the search.
    share = np.array([0.5, 0.9, 1.5, 2, 3, 4], np.float32)
    attack = replace(attack, ball=replace(attack.ball, eps=share * best))
    record = attack.run(key, model, x, y)
    np.testing.assert_array_equal(record.success, share > 1)
    assert (record.distance <= attack.ball.eps * (1 + 1e-5)).all()
    assert (record.forwards[share > 1] < QUERIES // 2).all()
    assert (record.forwards[share < 1] > QUERIES - 150).all()


def test_any_box_will_do(two_classes, key):
    """Pixels from -100 to 156."""
    model, x, y, gap, slope = two_classes
    moved = jax.tree_util.Partial(
        affine, model.args[0] / 256, 100 / 256 * model.args[0].sum(0) + model.args[1]
    )
    attack = HopSkipJump(ball=L2(lower=-100, upper=156), queries=QUERIES)
    record = attack.run(key, moved, 256 * x - 100, y)
    best = gap / np.linalg.norm(slope)
    assert record.success.all()
    assert (record.distance / 256 <= best * 1.06).all()


def test_rounds_grow_with_their_square_root(two_classes, key):
    model, x, y, _, _ = two_classes
    attack = HopSkipJump(ball=BALLS["l2"], queries=QUERIES)
    state = driver._init(attack, key, model, x, y, attack.steps)
    step = lambda i, state: driver._step(attack, i, state, model, x, y)
    planned, rounds = [], []
    for i in range(attack.steps):
        probed, number = int(state.probed[0]), int(state.rounds[0])
        state = step(np.int32(i), state)
        if int(state.rounds[0]) > number and number:
            planned.append(probed)
            rounds.append(number)
        if not attack.live(state).any():
            break
    assert not attack.live(state).any()  # the steps were enough to spend the budget
    full = planned[:-1]
    assert rounds[0] == 1 and len(full) > 5
    assert full == [int(100 * np.sqrt(n)) for n in rounds[: len(full)]]
    assert (state.tally.forwards <= QUERIES).all()


def test_targets_are_reached_from_images_of_theirs(tiny, key):
    _, weights, x, y = tiny
    model = jax.tree_util.Partial(affine, weights, jnp.zeros(5))
    rolled, target = jnp.roll(x, 1, axis=0), jnp.roll(y, 1)
    wanted = np.asarray(target != y)
    attack = Targeted(HopSkipJump(queries=600, start=rolled, start_queries=15))
    record = attack.run(key, model, x, target)
    assert record.success.all() and wanted.any()
    far = np.asarray(L2().size(rolled - x))
    assert (np.asarray(record.distance)[wanted] < 0.5 * far[wanted]).all()
    # Without a start the image is returned.
    model = jax.tree_util.Partial(affine, weights, jnp.array([0, 0, 0, 0, -1e6]))
    record = attack.run(key, model, x, jnp.full(8, 4, jnp.int32))
    np.testing.assert_array_equal(record.x_adv, x)
    assert not record.success.any() and (record.distance == 0).all()
    assert (record.forwards == 17).all() and np.isfinite(record.loss).all()


def test_pixels_off_the_mask_are_untouched_and_late_starts_join(two_classes, key):
    """With clean images for a start, noise is found late; the closest image is the mask's own."""
    model, x, y, gap, slope = two_classes
    mask = np.zeros(x.shape[1:], np.float32)
    mask[:3] = 1
    attack = HopSkipJump(ball=L2(mask=mask), queries=QUERIES, start=x)
    record = attack.run(key, model, x, y)
    np.testing.assert_array_equal(record.x_adv[:, 3:], x[:, 3:])
    best = gap / np.linalg.norm(slope * mask.ravel())
    assert record.success.all() and (record.first_success >= 2).all()
    assert (record.distance <= best * 1.08).all(), record.distance / best
