"""The search over budgets, on an attack whose smallest budget is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import FGSM, L2, PGD, AutoAttack, Linf, Patch, Targeted, WorstOf
from advjax.attacks.ddn import DDN
from advjax.attacks.minimal_norm import MinimalNorm


def two_scores(weights, x):
    score = x.reshape(x.shape[0], -1) @ weights
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


@pytest.fixture(scope="module")
def logistic():
    """A two-class linear model and images in the middle of the box; the last label is wrong."""
    rng = np.random.default_rng(2)
    weights = rng.normal(size=12).astype(np.float32)
    weights -= weights.mean()
    x = rng.uniform(0.45, 0.55, size=(9, 4, 3)).astype(np.float32)
    score = x.reshape(9, -1) @ weights
    y = (score > 0).astype(np.int32)
    y[-1] = 1 - y[-1]
    closest = np.abs(score) / np.abs(weights).sum()
    closest[-1] = 0
    return jax.tree_util.Partial(two_scores, jnp.asarray(weights)), x, y, closest


@pytest.mark.parametrize("guess", [1e-4, 0.4])
def test_finds_the_smallest_budget_from_below_and_above(guess, logistic, key):
    model, x, y, closest = logistic
    attack = MinimalNorm(FGSM(ball=Linf(guess)), searches=20)
    record = attack.run(key, model, x, y)
    assert record.success.all()
    np.testing.assert_allclose(record.distance, closest, rtol=1e-2, atol=2e-6)
    assert (record.distance >= closest - 1e-6).all()
    # One look at the image, then a judged step a search, then the final judgement.
    assert (record.forwards[:-1] == 1 + 20 * 2 + 1).all() and (record.backwards[:-1] == 20).all()
    np.testing.assert_array_equal(record.x_adv[-1], x[-1])
    assert record.forwards[-1] == 2 and record.first_success[-1] == 0
    aimed = Targeted(attack).run(key, model, x, 1 - y)
    np.testing.assert_allclose(aimed.distance, record.distance, atol=1e-6)


def test_the_worst_of_several_has_the_smallest_budget_of_any(logistic, key):
    model, x, y, closest = logistic
    parts = (PGD(ball=Linf(0.3), step_size=0.0, steps=1, random_start=False), FGSM(ball=Linf(0.3)))
    record = MinimalNorm(WorstOf(parts), searches=20).run(key, model, x, y)
    np.testing.assert_allclose(record.distance, closest, rtol=1e-2, atol=2e-6)
    MinimalNorm(AutoAttack(ball=Linf(0.3)))  # any attack with a budget


def test_where_nothing_succeeds_the_image_comes_back(logistic, key):
    model, x, _, _ = logistic
    flat = jax.tree_util.Partial(two_scores, jnp.zeros(12))
    attack = MinimalNorm(FGSM(ball=Linf(0.4)), searches=20)
    record = attack.run(key, flat, x, np.zeros(9, np.int32))
    assert not record.success.any() and (record.distance == 0).all()
    np.testing.assert_array_equal(record.x_adv, x)
    assert (record.zero_gradient == record.backwards).all()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: MinimalNorm(Linf(0.3)), TypeError, "expected an advjax attack"),
        (lambda: MinimalNorm(PGD(ball=L2(1)), searches=0), ValueError, "an integer >= 1"),
        (lambda: MinimalNorm(PGD(ball=L2(0))), ValueError, "first guess > 0"),
        (lambda: MinimalNorm(DDN()), ValueError, "a finite first guess"),
        (lambda: MinimalNorm(Patch(pixels=np.ones((2, 2, 1)))), ValueError, "a finite first guess"),
        (
            lambda: MinimalNorm(WorstOf((FGSM(ball=L2(1)), FGSM(ball=L2(2))))),
            ValueError,
            "one ball for all",
        ),
        (
            lambda: MinimalNorm(WorstOf((FGSM(ball=L2(1)), FGSM(ball=Linf(1))))),
            ValueError,
            "one ball for all",
        ),
        (lambda: MinimalNorm(Targeted(FGSM(ball=L2(1)))), TypeError, r"Targeted\(MinimalNorm"),
    ],
)
def test_refuses(make, error, says):
    with pytest.raises(error, match=says):
        make()
