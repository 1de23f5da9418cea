"""JSMA: the pair search against all pairs, and the paper's rules step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L0, L2, Target, Targeted, Undetected, every_target, example_keys, replace
from advjax.attacks.jsma import JSMA, best_pair

RNG = np.random.default_rng(0)
BATCH = 40


def shapes(number):
    """Clouds of (gain, fall) with small and large fronts, ties, and nothing to gain."""
    a, b = RNG.normal(size=(2, BATCH, number))
    angle = RNG.uniform(-np.pi, np.pi, size=(BATCH, number))
    whole = RNG.integers(-3, 4, size=(BATCH, number))
    yield a, b
    yield a - 2, b - 2
    yield np.cos(angle), np.sin(angle)
    yield np.exp(a) - 1, np.exp(-a) - 1
    yield 1.5 - np.exp(a), 1.5 - np.exp(-a)
    yield a, 1 - a  # on a line no feature beats another
    yield a, -a + 0.1 * b
    yield whole, RNG.integers(-3, 4, size=(BATCH, number))
    yield whole, 2 - whole
    yield -np.abs(a), np.abs(b)
    yield 0 * a, 0 * a


@pytest.mark.parametrize("number", [1, 3, 17, 61])
def test_the_pair_is_the_best_of_all_pairs(number):
    search = jax.jit(best_pair)
    found_any = 0
    for gain, fall in shapes(number):
        gain, fall = np.asarray(gain, np.float32), np.asarray(fall, np.float32)
        free = RNG.uniform(size=gain.shape) < 0.8
        p, q, found = map(np.asarray, search(gain, fall, free))
        gain, fall = gain.astype(np.float64), fall.astype(np.float64)
        gains, falls = gain[:, :, None] + gain[:, None], fall[:, :, None] + fall[:, None]
        pairs = free[:, :, None] & free[:, None] & ~np.eye(number, dtype=bool)
        value = np.where(pairs & (gains > 0) & (falls > 0), gains * falls, -1)
        best = value.max(axis=(1, 2))
        np.testing.assert_array_equal(found, best > 0)
        chosen = value[np.arange(BATCH), p, q][found]
        assert (chosen >= best[found] * (1 - 2e-6)).all()
        found_any += found.sum()
    assert number == 1 or found_any > BATCH


def test_the_search_holds_no_square_of_the_features():
    shape = jax.ShapeDtypeStruct((1, 150528), jnp.float32)
    free = jax.ShapeDtypeStruct(shape.shape, bool)
    memory = jax.jit(best_pair).lower(shape, shape, free).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 50 * 4 * 150528


def published(weights, x, target, theta, moves):
    """The paper's algorithm 2 on a linear model, all pairs in loops."""
    x, used = x.astype(np.float64).copy(), 0
    while np.argmax(x @ weights) != target and used < moves:
        alpha, beta = weights[:, target], weights.sum(1) - weights[:, target]
        room = x < 1 if theta > 0 else x > 0
        best, pair = 0.0, None
        for p in range(len(x)):
            for q in range(p):
                a, b = alpha[p] + alpha[q], beta[p] + beta[q]
                right = (a > 0 and b < 0) if theta > 0 else (a < 0 and b > 0)
                if room[p] and room[q] and right and -a * b > best:
                    best, pair = -a * b, [p, q]
        if pair is None:
            break
        x[pair] = np.clip(x[pair] + theta, 0, 1)
        used += 1
    return x, used


@pytest.mark.parametrize("theta", [1.0, -0.3])
def test_steps_are_the_published_ones(theta, tiny, key):
    model, weights, x, y = tiny
    target = (y + 1) % 5
    attack = JSMA(ball=L0(14), theta=theta, probabilities=False, goal=Target())
    record = attack.run(key, model, x, target)
    reached = 0
    for i in range(8):
        image, used = published(
            np.asarray(weights, np.float64), np.asarray(x[i]).ravel(), int(target[i]), theta, 7
        )
        np.testing.assert_allclose(record.x_adv[i].ravel(), image, atol=1e-6)
        reached += np.argmax(image @ np.asarray(weights)) == int(target[i])
        assert record.success[i] == (np.argmax(image @ np.asarray(weights)) == target[i])
        assert record.backwards[i] <= 2 * (used + 1)
    assert reached > 0


def test_budget_is_the_share_of_features_or_the_ball(tiny, key):
    _, weights, x, y = tiny
    stubborn = jax.tree_util.Partial(far_target, weights)
    for attack, pairs in (
        (JSMA(theta=0.01, upsilon=0.5), 6),
        (JSMA(theta=0.01), 1),  # floor(24 * 0.145 / 2)
        (JSMA(ball=L0(9), theta=0.01), 4),
        (JSMA(ball=L0(9), theta=0.01, upsilon=0.25), 3),
        (JSMA(ball=L0(9), theta=0.01, steps=2), 2),
        (JSMA(ball=L0(1)), 0),
    ):
        attack = replace(attack, probabilities=False)  # which saturate
        record = Targeted(attack).run(key, stubborn, x, (y + 1) % 5)
        assert not record.success.any()
        assert (record.backwards == 2 * pairs).all(), attack
        assert (record.distance <= 2 * pairs).all()


def far_target(weights, x):
    return 1e-3 * (x.reshape(x.shape[0], -1) @ weights) + 100 * jnp.arange(5.0)[None, ::-1]


def test_an_example_of_the_target_is_left_alone(tiny, key):
    model, _, x, y = tiny
    record = JSMA(goal=Target()).run(key, model, x, y)
    assert record.success.all() and (record.distance == 0).all()
    np.testing.assert_array_equal(record.x_adv, x)
    assert (record.first_success == 0).all()


def test_untargeted_keeps_the_fewest_features_of_all_targets(tiny, key):
    model, _, x, y = tiny
    attack = JSMA(ball=L0(20), theta=0.3)
    record = attack.run(key, model, x, y)
    assert record.success.all()
    for shift in range(1, 5):
        aimed = attack.with_goal(Target()).run(key, model, x, (y + shift) % 5)
        assert (record.distance <= np.where(aimed.success, aimed.distance, np.inf)).all()


def test_away_from_the_label_and_the_alarm(tiny, key):
    model, _, x, y = tiny
    record = JSMA(ball=L0(20), theta=0.3, goal=Undetected()).run(key, model, x, y)
    said = jnp.argmax(model(record.x_adv), axis=1)
    np.testing.assert_array_equal(record.success, (said != y) & (said != 4))
    assert record.success.any() and (y != 4).all()


def test_theta_and_upsilon_are_each_examples_own(tiny, key):
    model, _, x, y = tiny
    theta = np.where(np.arange(8) % 2, -1, 1) * np.linspace(0.2, 0.6, 8)
    upsilon = np.linspace(0.1, 0.8, 8)
    record = JSMA(theta=theta, upsilon=upsilon).run(key, model, x, y)
    assert ((record.x_adv - x) * np.sign(theta).reshape(-1, 1, 1, 1) >= 0).all()
    for i in range(8):
        alone = JSMA(theta=theta[i], upsilon=upsilon[i]).run(
            example_keys(key, 8)[i : i + 1], model, x[i : i + 1], y[i : i + 1]
        )
        np.testing.assert_allclose(record.x_adv[i], alone.x_adv[0], atol=1e-6)
        assert record.forwards[i] == alone.forwards[0]


def test_every_target_is_all_of_them_in_turn(tiny, key):
    model, _, x, y = tiny
    targets, record = every_target(JSMA(ball=L0(20), theta=0.3), key, model, x, y)
    assert targets.shape == record.success.shape == (4, 8) and record.x_adv.shape == (4, *x.shape)
    for i in range(8):
        assert sorted(targets[:, i].tolist()) == sorted(set(range(5)) - {int(y[i])})
    for images, wanted, success in zip(record.x_adv, targets, record.success, strict=True):
        np.testing.assert_array_equal(jnp.argmax(model(images), axis=1) == wanted, success)
    assert record.success.any(axis=0).all()


def test_numbers_and_theta_are_one_trace(tiny, traces, key):
    model, _, x, y = tiny
    JSMA(ball=L0(4), theta=0.5)(key, model, x, y)
    before = len(traces)
    JSMA(ball=L0(8), theta=-1, upsilon=0.4)(key, model, x, y)
    JSMA(upsilon=0.9)(key, model, x, y)
    assert len(traces) == before


def test_probabilities_give_the_softmax_jacobian(tiny, key):
    """Its two sums are opposite, so the pair is the two features with the largest gradient."""
    model, _, x, y = tiny
    target = (y + 1) % 5
    attack = JSMA(upsilon=1, theta=1, steps=1, goal=Target())
    x_adv = attack(key, model, x, target)
    chance = lambda x: jnp.sum(jax.nn.softmax(model(x))[jnp.arange(8), target])
    grad = np.asarray(jax.grad(chance)(x)).reshape(8, -1)
    changed = np.asarray(x_adv != x).reshape(8, -1)
    for i in range(8):
        assert set(np.flatnonzero(changed[i])) == set(np.argsort(-grad[i])[:2])


def test_mask_and_box_hold(tiny, key):
    model, _, x, y = tiny
    mask = np.zeros(x.shape[1:], np.float32)
    mask[:2] = 1
    x_adv = JSMA(ball=L0(12, mask=mask))(key, model, x, y)
    np.testing.assert_array_equal(x_adv[:, 2:], x[:, 2:])
    assert (x_adv[:, :2] != x[:, :2]).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JSMA(ball=L2(1.0)), r"given ball=L2.*; expected a ball L0\(features\)"),
        (lambda: JSMA(theta=0), "given theta=0"),
        (lambda: JSMA(upsilon=-1), "given upsilon=-1"),
        (lambda: JSMA(steps=-1), "given steps=-1"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
