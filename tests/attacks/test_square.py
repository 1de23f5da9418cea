"""Square: its schedule, its windows, its queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import linear

from advjax import L0, L1, L2, Linf, Targeted, example_keys, replace
from advjax.attacks.square import Square, _bumps


def constant(x):
    """Nothing is ever better, and the label 0 always stands."""
    return jnp.zeros((x.shape[0], 3)).at[:, 0].set(1.0) + 0 * jnp.sum(x)


def test_the_schedule_is_the_published_table():
    table = [(0, 0), (10, 0), (11, 1), (50, 1), (51, 2), (200, 2), (201, 3), (500, 3), (501, 4)]
    table += [(1000, 4), (1001, 5), (2000, 5), (2001, 6), (4000, 6), (4001, 7), (4999, 7)]
    table += [(6001, 8), (8000, 8), (8001, 9), (9999, 9)]
    plain = jax.jit(Square(ball=Linf(0.3)).share)
    stretched = jax.jit(Square(ball=Linf(0.3), rescale_schedule=True, steps=10_000).share)
    for i, halvings in table:
        share = plain(i)
        assert share == np.float32(0.8) / 2**halvings, i
        assert stretched(i) == share, i
    # Rescaled to 5,000 steps the thresholds come twice as early.
    half = jax.jit(Square(ball=Linf(0.3), rescale_schedule=True, steps=5000).share)
    for i, halvings in [(5, 0), (6, 1), (25, 1), (26, 2), (4000, 8), (4001, 9), (4999, 9)]:
        assert half(i) == np.float32(0.8) / 2**halvings, i
    odd = jax.jit(Square(ball=Linf(0.3), rescale_schedule=True, steps=777).share)
    for i in range(0, 777, 31):
        halvings = sum(i * 10_000 // 777 > n for n in (10, 50, 200, 500, 1000, 2000, 4000, 6000))
        assert odd(i) == np.float32(0.8) / 2 ** (halvings + (i * 10_000 // 777 > 8000)), i


def test_sides_follow_the_share_and_fit_the_image():
    x = jnp.zeros((1, 28, 28, 1))
    sides = [int(Square(ball=Linf(0.3)).side(i, x)) for i in (0, 20, 100, 300, 4999)]
    assert sides == [25, 18, 13, 9, 2]
    sides = [int(Square(ball=L2(1.0)).side(i, x)) for i in (0, 20, 100, 300, 4999)]
    assert sides == [25, 19, 13, 9, 3]
    assert int(Square(ball=L2(1.0)).side(0, jnp.zeros((1, 4, 50, 3)))) == 3


def piled(height, width, power):
    """Centred squares, the k-th 2 k - 1 wide and k**-power high, one on the other."""
    pile, middle = np.zeros((height, width)), (height // 2, width // 2)
    for k in range(max(height, width) // 2 + 1):
        rows = slice(max(middle[0] - k, 0), middle[0] + k + 1)
        pile[rows, max(middle[1] - k, 0) : middle[1] + k + 1] += (k + 1.0) ** -power
    return pile


@pytest.mark.parametrize("ball, power, order", [(L2(1.0), 2, 2), (L1(1.0), 4, 1)])
def test_bumps_are_the_published_piles(ball, power, order):
    norm = lambda values: (np.abs(values) ** order).sum() ** (1 / order)
    bumps = jax.jit(lambda r, c, side, turned: _bumps(ball, r, c, side, turned))
    rows, columns = np.arange(12)[None] - 2, np.arange(14)[None] - 3
    for side in (3, 5, 9):
        halves = [piled(side // 2, side, power), piled(side - side // 2, side, power)]
        window = np.concatenate([halves[0] / norm(halves[0]), -halves[1] / norm(halves[1])])
        window /= norm(window)
        for turned in (False, True):
            expected = np.zeros((12, 14))
            expected[2 : 2 + side, 3 : 3 + side] = window.T if turned else window
            got = bumps(rows, columns, jnp.int32(side), np.array([turned]))[0]
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_linf_start_is_stripes_and_windows_reach_every_place_with_both_signs(key):
    x = jnp.full((400, 5, 7, 2), 0.5)
    attack = Square(ball=Linf(0.25))
    keys = example_keys(key, 400)
    start = jax.jit(attack.init, static_argnums=1)(keys, constant, x, jnp.zeros(400, int), 0).x_adv
    assert (jnp.abs(start - x) == 0.25).all()
    assert (start == start[:, :1]).all()  # constant down every column
    assert len(np.unique(np.asarray(start[:, 0]).reshape(400, -1), axis=0)) > 390

    side = 2
    proposal = jax.jit(attack._window)(keys, jnp.int32(side), x, x) - x
    changed = np.asarray(proposal[..., 0] != 0)
    assert (changed.sum(axis=(1, 2)) == side**2).all()
    rows, columns = changed.any(axis=2).argmax(axis=1), changed.any(axis=1).argmax(axis=1)
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == 4 * 6  # the last ones too
    values = np.asarray(proposal)[np.arange(400), rows, columns]
    np.testing.assert_allclose(np.abs(values), 0.25)
    assert len(np.unique(values, axis=0)) == 4  # every combination over the two channels


def test_no_linf_window_leaves_the_image_as_it_is(key):
    x = jnp.full((50, 6, 6, 1), 0.5)
    attack, keys = Square(ball=Linf(0.25)), example_keys(key, 50)
    best = x + 0.25  # half of the draws would change nothing
    proposal = jax.jit(attack._window)(keys, jnp.int32(3), best, x)
    assert ((proposal != best).sum(axis=(1, 2, 3)) == 9).all()


@pytest.mark.parametrize("ball", [Linf(0.3), L2(1.5), L1(6.0)], ids=["linf", "l2", "l1"])
def test_it_fools_a_linear_model_inside_ball_box_and_mask(ball, key):
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(8, 9, 6, 2)).astype(np.float32)
    x[:, :, 3:] = np.round(x[:, :, 3:])  # on the bounds
    x = jnp.asarray(x)
    mask = np.ones((9, 6, 2), np.float32)
    mask[:2] = 0
    model = jax.tree_util.Partial(linear, jnp.asarray(rng.normal(size=(108, 4)), jnp.float32))
    y = jnp.argmax(model(x), axis=1)
    attack = Square(ball=replace(ball, mask=mask), steps=100)
    record = attack.run(key, model, x, y)
    assert record.success.mean() >= 0.5
    assert (ball.size(record.x_adv - x) <= ball.eps * (1 + 1e-5)).all()
    assert record.x_adv.min() >= 0 and record.x_adv.max() <= 1
    np.testing.assert_array_equal(record.x_adv[:, :2], x[:, :2])
    # The start, one query for every step spent, the last judgement; never a gradient.
    spent = np.where(record.success, record.first_success, 100)
    np.testing.assert_array_equal(record.forwards, spent + 2)
    assert (record.backwards == 0).all()
    # A search keeps only what is better.
    start = replace(attack, steps=0).run(key, model, x, y)
    assert (record.loss >= start.loss).all()


def test_aimed_it_raises_the_targets_score(tiny, key):
    model, _, x, y = tiny
    targets = jnp.argsort(model(x), axis=1)[:, -2]
    record = Targeted(Square(ball=Linf(0.15), steps=40)).run(key, model, x, targets)
    reached = jnp.argmax(model(record.x_adv), axis=1) == targets
    np.testing.assert_array_equal(record.success, reached)
    assert reached.mean() >= 0.5


def test_number_of_steps_is_not_a_new_program(tiny, traces, key):
    model, _, x, y = tiny
    Square(ball=Linf(0.001), steps=3)(key, model, x, y)
    before = len(traces)
    Square(ball=Linf(0.001), steps=9, p_init=0.1)(key, model, x, y)
    assert len(traces) == before


def test_square_refusals_say_what_is_taken(key):
    with pytest.raises(TypeError, match="expected Linf, L2 or L1"):
        Square(ball=L0(3))
    with pytest.raises(ValueError, match="finite eps"):
        Square(ball=Linf())
    with pytest.raises(ValueError, match=r"p_init=0"):
        Square(ball=Linf(0.1), p_init=0)
    with pytest.raises(ValueError, match=r"expected \[B, H, W, C\]"):
        Square(ball=Linf(0.1))(key, constant, jnp.zeros((2, 5)), jnp.zeros(2, jnp.int32))
