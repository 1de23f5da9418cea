"""The three attacks of Carlini & Wagner, against closed forms and against their own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import affine

from advjax import L1, L2, Linf, Targeted, margin, replace
from advjax.attacks.carlini_wagner import CarliniWagner
from advjax.attacks.carlini_wagner_l0 import CarliniWagnerL0, _least
from advjax.attacks.carlini_wagner_linf import CarliniWagnerLinf

ATTACKS = {
    "l2": CarliniWagner(steps=500, searches=6, c=0.1),
    "linf": CarliniWagnerLinf(steps=6000, attempt=200, c=0.01),
    # One feature would do for the boundary: three logits beyond it take several.
    "l0": CarliniWagnerL0(steps=3000, attempt=100, c=0.1, confidence=3.0),
}
QUICK = {
    "l2": replace(ATTACKS["l2"], steps=200, searches=4, step_size=0.05),
    "linf": replace(ATTACKS["linf"], steps=800, attempt=40, step_size=0.02),
    "l0": replace(ATTACKS["l0"], steps=800, attempt=40, step_size=0.03, confidence=0),
}
NORMS = pytest.mark.parametrize("norm", ["l2", "linf", "l0"])


@pytest.fixture(scope="module")
def problem():
    """A linear model with two classes and images that touch the box, ``[6, 5, 4, 1]``."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(20, 2)).astype(np.float32)
    bias = np.float32([0.05, -0.1])
    x = rng.uniform(-0.2, 1.2, size=(6, 5, 4, 1)).clip(0, 1).astype(np.float32)
    model = jax.tree_util.Partial(affine, jnp.asarray(weights), jnp.asarray(bias))
    return model, jnp.asarray(x), jnp.argmax(model(x), axis=1).astype(jnp.int32)


def nearest(norm, model, x, y, margin):
    """``[B]``: norm of the smallest change in the box that wins by the margin."""
    weights, bias = (np.asarray(v, np.float64) for v in model.args)
    out = []
    for image, label in zip(np.asarray(x, np.float64).reshape(len(x), -1), y, strict=True):
        w = weights[:, 1 - label] - weights[:, label]
        gap = margin - (image @ w + bias[1 - label] - bias[label])
        pull, room = np.abs(w), np.where(w > 0, 1 - image, image)
        if norm == "l0":
            gains = np.cumsum(np.sort(pull * room)[::-1])
            out.append(1 + np.searchsorted(gains, gap))
            continue
        low, high = 0.0, 1e6  # the change is min(room, t) or min(room, t * pull)
        change = lambda t, p=pull, r=room: np.minimum(r, t * (p if norm == "l2" else 1))
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (low, middle) if pull @ change(middle) >= gap else (middle, high)
        out.append(np.linalg.norm(change(high), 2 if norm == "l2" else np.inf))
    return np.array(out, np.float64)


@NORMS
def test_finds_the_closest_point_of_a_linear_model(norm, problem, key):
    model, x, y = problem
    record = ATTACKS[norm].run(key, model, x, y)
    assert record.success.all()
    exact = nearest(norm, model, x, y, float(ATTACKS[norm].confidence))
    assert norm != "l0" or exact.mean() > 2
    ratio = np.asarray(record.distance) / exact
    assert (ratio > 0.999).all()
    assert ratio.mean() < {"l2": 1.01, "linf": 1.01, "l0": 1.001}[norm], ratio
    assert ratio.max() < {"l2": 1.02, "linf": 1.02, "l0": 1.001}[norm], ratio


@NORMS
def test_an_example_alone_goes_the_same_way_at_the_same_cost(norm, problem, key):
    """Every example runs its own searches: nothing of another one's may show."""
    model, x, y = problem
    whole = QUICK[norm].run(key, model, x, y)
    assert len(set(np.asarray(whole.forwards).tolist())) > 1  # they do end at different times
    for i in (0, 3):
        alone = QUICK[norm].run(key, model, x[i : i + 1], y[i : i + 1])
        np.testing.assert_allclose(whole.x_adv[i], alone.x_adv[0], atol=1e-5)
        assert abs(int(whole.forwards[i]) - int(alone.forwards[0])) <= 20  # by rounding


@NORMS
def test_confidence_is_a_margin_in_logits(norm, problem, key):
    model, x, y = problem
    plain, sure = QUICK[norm], replace(QUICK[norm], confidence=1.0)
    record = sure.run(key, model, x, y)
    found = np.asarray(record.distance) > 0
    assert found.sum() >= 5
    assert (np.asarray(margin(model(record.x_adv), y))[found] >= 0.999).all()
    assert (record.distance >= plain.run(key, model, x, y).distance - 1e-3)[found].all()


@NORMS
def test_what_is_wrong_already_costs_nothing_and_stays(norm, problem, key):
    model, x, y = problem
    wrong = y.at[:2].set(1 - y[:2])
    record = QUICK[norm].run(key, model, x, wrong)
    np.testing.assert_array_equal(record.x_adv[:2], x[:2])
    assert record.success.all() and (record.distance[:2] == 0).all()
    assert (record.first_success[:2] == 0).all() and (record.forwards[:2] == 2).all()
    assert (record.forwards[2:] > 20).all()


@NORMS
def test_pixels_on_the_bounds_move_and_pixels_off_the_mask_do_not(norm, problem, key):
    """In tanh space a pixel takes a hundred steps and more to come away from a bound."""
    model, _, _ = problem
    x = jnp.where(jnp.arange(20) % 2 == 0, 0.0, 1.0).reshape(1, 5, 4, 1)
    y = jnp.argmax(model(x), axis=1).astype(jnp.int32)
    mask = np.ones((5, 4, 1), np.float32)
    mask[0] = 0
    attack = replace(QUICK[norm], step_size=0.1)
    record = replace(attack, ball=replace(attack.ball, mask=mask)).run(key, model, x, y)
    np.testing.assert_array_equal(record.x_adv[:, 0], x[:, 0])
    assert record.success.all() and record.distance[0] > 0
    assert record.x_adv.min() >= 0 and record.x_adv.max() <= 1


@NORMS
def test_a_target_is_reached(norm, tiny, key):
    model, _, x, y = tiny
    target = (y + 2) % 5
    record = Targeted(QUICK[norm]).run(key, model, x, target)
    reached = jnp.argmax(model(record.x_adv), axis=1) == target
    np.testing.assert_array_equal(record.success, reached)
    assert reached.all()


def test_a_finite_radius_is_kept(problem, key):
    model, x, y = problem
    free = QUICK["l2"].run(key, model, x, y)
    eps = np.float32(np.median(free.distance))
    record = replace(QUICK["l2"], ball=L2(eps)).run(key, model, x, y)
    assert (record.distance <= eps + 1e-6).all()
    np.testing.assert_array_equal(record.success, free.distance <= eps)


def test_searches_end_early_where_they_get_nowhere(problem, key):
    model, x, y = problem
    early = QUICK["l2"].run(key, model, x, y)
    full = replace(QUICK["l2"], abort_early=False).run(key, model, x, y)
    assert (full.backwards == 800).all() and (full.forwards == 801).all()
    assert (early.backwards <= 800).all() and early.backwards.mean() < 760
    assert early.distance.mean() < 1.05 * full.distance.mean()


def test_the_number_of_steps_and_the_constant_compile_nothing_new(tiny, traces, key):
    model, _, x, y = tiny
    make = lambda steps, c: CarliniWagner(steps=steps, searches=3, c=c)
    make(30, 0.1)(key, model, x, y)
    before = len(traces)
    make(20, np.float32(0.2))(key, model, x, y)
    make(50, 1)(key, model, x, y)
    assert len(traces) == before


def test_a_round_of_l0_freezes_what_gives_nothing_or_could_give_least():
    rng = np.random.default_rng(0)
    gives = rng.uniform(0, 0.02, size=(4, 300)).astype(np.float32)
    gives[2:] += 0.01  # every feature matters
    could_give = gives + rng.uniform(size=gives.shape).astype(np.float32)
    change = np.where(rng.uniform(size=gives.shape) < 0.5, 0, gives)
    free = rng.uniform(size=gives.shape) < 0.8
    frozen = np.asarray(_least(*map(jnp.asarray, (gives, could_give, change, free))))
    for i in range(4):
        most = max(int(0.3 * np.sqrt((change[i] < 1e-4).sum())), 1)
        assert most > 1
        order = [j for j in np.argsort(gives[i]) if free[i, j]]
        expected = sorted(j for j in order[:most] if gives[i, j] <= 0.01)
        assert len(expected) == (most if i < 2 else 0)
        if not expected:
            expected = [np.argmin(np.where(free[i], could_give[i], np.inf))]
        assert np.flatnonzero(frozen[i]).tolist() == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CarliniWagner(ball=Linf(0.1)), "CarliniWagner: given ball=Linf.*L2 ball"),
        (lambda: CarliniWagnerLinf(ball=L2()), "CarliniWagnerLinf: given ball=L2.*Linf ball"),
        (lambda: CarliniWagnerL0(ball=L1()), "CarliniWagnerL0: given ball=L1.*L0 ball"),
        (lambda: CarliniWagner(steps=0), "given steps=0; expected an integer >= 1"),
        (lambda: CarliniWagner(searches=2.5), "given searches=2.5"),
        (lambda: CarliniWagner(c=0), "given c=0.*; expected numbers > 0"),
        (lambda: CarliniWagnerLinf(shrink=-1), "given shrink=-1"),
        (lambda: CarliniWagnerL0(confidence=-1), "given confidence=-1.*; expected numbers >= 0"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_constant_per_image_must_fit_the_batch(problem, key):
    model, x, y = problem
    with pytest.raises(ValueError, match=r"c: given shape \(2,\); expected a scalar or \[6\]"):
        CarliniWagner(c=[0.1, 0.2])(key, model, x, y)
    one = replace(QUICK["l2"], c=np.full(6, 0.1, np.float32))(key, model, x, y)
    np.testing.assert_allclose(one, QUICK["l2"](key, model, x, y), atol=1e-5)
