"""The elastic-net attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import linear

from advjax import L1, L2, Targeted, margin, replace
from advjax.attacks.ead import EAD

QUICK = EAD(steps=150, searches=5, c=0.1, beta=0.05)


@pytest.fixture(scope="module")
def problem():
    """A linear model with two classes and images that touch the box, ``[6, 5, 4]``."""
    rng = np.random.default_rng(1)
    model = jax.tree_util.Partial(linear, jnp.asarray(rng.normal(size=(20, 2)), jnp.float32))
    x = jnp.asarray(rng.uniform(-0.2, 1.2, size=(6, 5, 4)).clip(0, 1), jnp.float32)
    return model, x, jnp.argmax(model(x), axis=1).astype(jnp.int32)


def nearest(model, x, y):
    """``[B]``: the smallest L1 change in the box: the steepest pixels first, as far as they go."""
    weights = np.asarray(model.args[0], np.float64)
    out = []
    for image, label in zip(np.asarray(x, np.float64).reshape(len(x), -1), y, strict=True):
        w = weights[:, 1 - label] - weights[:, label]
        left, total = -(image @ w), 0.0
        for j in np.argsort(-np.abs(w)):
            step = min(left / abs(w[j]), 1 - image[j] if w[j] > 0 else image[j])
            left, total = left - step * abs(w[j]), total + step
        out.append(total)
    return np.array(out)


def test_finds_the_closest_point_of_a_linear_model(problem, key):
    model, x, y = problem
    record = replace(QUICK, steps=1000).run(key, model, x, y)
    ratio = np.asarray(record.distance) / nearest(model, x, y)
    assert record.success.all() and (ratio > 0.999).all()
    assert ratio.mean() < 1.03 and ratio.max() < 1.05, ratio


def test_changes_are_sparse_and_the_rules_trade_l1_for_l2(problem, key):
    model, x, y = problem
    l1, en = (replace(QUICK, rule=rule, beta=0.01).run(key, model, x, y) for rule in ("L1", "EN"))
    for record in (l1, en):
        moved = np.asarray(record.x_adv != x).reshape(6, -1).sum(1)
        assert (moved < 18).all()  # the others are the clean image's, to the bit
    assert (l1.distance <= en.distance + 1e-6).all()
    squares = lambda r: jnp.sum((r.x_adv - x) ** 2, axis=(1, 2)) + 0.01 * r.distance
    assert (squares(en) <= squares(l1) + 1e-6).all()


def test_confidence_cost_and_the_clean_image(problem, key):
    model, x, y = problem
    wrong = y.at[0].set(1 - y[0])
    record = replace(QUICK, confidence=0.5).run(key, model, x, wrong)
    assert (np.asarray(margin(model(record.x_adv), wrong))[1:] >= 0.499).all()
    assert (record.forwards == 2 * record.backwards + 1).all()
    assert (record.backwards <= 750).all()
    plain = QUICK.run(key, model, x, wrong)
    np.testing.assert_array_equal(plain.x_adv[0], x[0])
    assert plain.success.all() and plain.forwards[0] == 3
    assert (plain.distance < record.distance)[1:].all()


def test_an_example_alone_goes_the_same_way(problem, key):
    model, x, y = problem
    whole = QUICK.run(key, model, x, y)
    alone = QUICK.run(key, model, x[2:3], y[2:3])
    np.testing.assert_allclose(whole.x_adv[2], alone.x_adv[0], atol=1e-5)


def test_mask_target_and_radius(tiny, key):
    model, _, x, y = tiny
    target = (y + 1) % 5
    mask = np.ones(x.shape[1:], np.float32)
    mask[0] = 0
    local = replace(QUICK, ball=L1(mask=mask))
    record = Targeted(local).run(key, model, x, target)
    assert (jnp.argmax(model(record.x_adv), axis=1) == target).all() and record.success.all()
    np.testing.assert_array_equal(record.x_adv[:, 0], x[:, 0])
    eps = np.float32(np.median(record.distance))
    near = Targeted(replace(local, ball=L1(eps, mask=mask))).run(key, model, x, target)
    assert (near.distance <= eps + 1e-5).all()
    np.testing.assert_array_equal(near.success, record.distance <= eps)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ball": L2()}, "EAD: given ball=L2.*; expected an L1 ball"),
        ({"rule": "L2"}, "given rule='L2'; expected 'L1' or 'EN'"),
        ({"beta": 0}, "given beta=0"),
        ({"steps": 0}, "given steps=0"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(fields, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EAD(**fields)
