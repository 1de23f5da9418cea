"""The one-pixel attack: differential evolution's rules, the budget in pixels, the accounts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L0, Linf, Target, replace
from advjax.attacks.one_pixel import OnePixel

X = jnp.full((4, 5, 6, 3), 0.5)
Y = jnp.zeros(4, jnp.int32)


def one_weak_spot(spot, x):
    """Class 1 wins where the red of one pixel is above 0.9 and its blue is below 0.1."""
    row, column = spot
    red, blue = x[:, row, column, 0], x[:, row, column, 2]
    score = jnp.minimum(red - 0.9, 0.1 - blue)
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


WEAK = jax.tree_util.Partial(one_weak_spot, (2, 4))


def test_it_finds_the_one_pixel_that_matters(key):
    record = OnePixel(ball=L0(3), population=40, chunk=20, steps=60).run(key, WEAK, X, Y)
    assert record.success.all()
    changed = np.asarray((record.x_adv != X).any(axis=-1))
    assert changed[:, 2, 4].all() and (changed.sum(axis=(1, 2)) == 1).all()
    assert (record.distance <= 3).all() and (record.backwards == 0).all()
    # The clean image, whole generations (the first draw is number 0), and the judgement.
    np.testing.assert_array_equal(record.forwards, 2 + 40 * (record.first_success + 1))


def test_memory_chunks_change_no_result(key):
    whole = OnePixel(population=40, chunk=40, steps=3).run(key, WEAK, X, Y)
    parts = OnePixel(population=40, chunk=20, steps=3).run(key, WEAK, X, Y)
    np.testing.assert_array_equal(whole.x_adv, parts.x_adv)
    np.testing.assert_array_equal(whole.forwards, parts.forwards)


def test_three_children_parents_are_distinct_and_mixed():
    attack = OnePixel(population=7, chunk=7, factor=0.25)
    parents = jax.random.uniform(jax.random.key(1), (7, 1, 1), minval=0.3, maxval=0.6)
    value = np.asarray(parents)[:, 0, 0]
    seen = set()
    for n in range(20):
        children = np.asarray(attack._child(jax.random.key(n), parents))[:, 0, 0]
        for i, child in enumerate(children):
            mixed = value[:, None, None] + 0.25 * (value[:, None] - value)
            a, b, c = np.unravel_index(np.abs(mixed - child).argmin(), (7, 7, 7))
            assert abs(mixed[a, b, c] - child) < 1e-6
            assert len({i, int(a), int(b), int(c)}) == 4
            seen.add((int(a), int(b), int(c)))
    assert len(seen) > 60  # of 210


def test_the_first_draw_is_the_papers():
    genes = OnePixel()._first(jax.random.key(0), (4000, 1, 5))
    place, value = np.asarray(genes[..., :2]), np.asarray(genes[..., 2:])
    np.testing.assert_allclose(place.mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(place.std(), 12**-0.5, atol=0.02)
    # A Gaussian around grey of half the range: a sixth of it is cut at either end.
    np.testing.assert_allclose((value == 0).mean(), 0.159, atol=0.02)
    np.testing.assert_allclose((value == 1).mean(), 0.159, atol=0.02)


def never(x):
    return jnp.stack([1 + 0 * x[:, 0, 0, 0], jnp.mean(x, axis=(1, 2, 3))], axis=1)


@pytest.mark.parametrize(("features", "most"), [(30, 3), (9, 3), (5, 1), (2, 0)])
def test_budget_counts_features_and_pixels(features, most, key):
    attack = OnePixel(ball=L0(features), pixels=3, population=4, chunk=4, steps=1)
    record = attack.run(key, never, X, Y)
    changed = np.asarray((record.x_adv != X).any(axis=-1)).sum(axis=(1, 2))
    assert (changed <= most).all() and changed.max() == most
    assert (record.distance <= features).all()


def test_fitness_never_falls_and_mask_holds(key):
    mask = np.zeros((5, 6, 1), np.float32)
    mask[:, 3:] = 1
    attack = OnePixel(ball=L0(mask=mask), population=8, chunk=8)
    losses = [replace(attack, steps=n).run(key, never, X, Y) for n in (0, 2, 6)]
    for short, long in zip(losses, losses[1:], strict=False):
        assert (long.loss >= short.loss).all()
    np.testing.assert_array_equal(losses[-1].x_adv[:, :, :3], X[:, :, :3])


def test_a_wrong_example_costs_two_looks(key):
    record = OnePixel(population=40, chunk=20, steps=2).run(key, WEAK, X, Y + 1)
    assert record.success.all() and (record.distance == 0).all() and (record.forwards == 2).all()


def test_targeted_goes_to_the_target(key):
    attack = OnePixel(population=40, chunk=40, steps=60, goal=Target())
    assert attack.run(key, WEAK, X, Y + 1).success.all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OnePixel(ball=Linf(0.1)), "given ball=Linf"),
        (lambda: OnePixel(population=3), "given population=3; expected an integer >= 4"),
        (
            lambda: OnePixel(population=10, chunk=4),
            "given chunk=4; expected a divisor of population=10",
        ),
        (lambda: OnePixel(pixels=0), "given pixels=0"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_only_images_are_taken(key):
    with pytest.raises(ValueError, match=r"given images of shape \(4, 7\); expected \[B, H, W,"):
        OnePixel()(key, lambda x: x[:, :2], jnp.zeros((4, 7)), Y)
