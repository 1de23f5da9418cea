"""Smoothing: counts, certificates and tests against scipy and against a linear model's closed form.

Of a linear two-class model ``sign(w x + b)`` the smoothed class is the same, its probability is
``Phi(|w x + b| / (sigma ||w||))``, and the true radius is the distance to the hyperplane.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from advjax.answers import example_keys
from advjax.defences.smoothing import ABSTAIN, Smoothed

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=12), jnp.float32)
X = jnp.asarray(RNG.random((7, 2, 3, 2)), jnp.float32)
BIAS = -jnp.median(X.reshape(7, -1) @ W)
TRACES = []


def linear(weights, bias, x):
    TRACES.append(None)
    margin = x.reshape(x.shape[0], -1) @ weights + bias
    return jnp.stack([-margin, margin], -1)


BASE = jax.tree_util.Partial(linear, W, BIAS)
MARGIN = np.asarray(X.reshape(7, -1) @ W + BIAS, np.float64)


def smoothed(sigma=0.3, **fields):
    return Smoothed(BASE, sigma, **fields)


def test_counts_do_not_depend_on_batch_neighbours_or_passes(key):
    keys = example_keys(key, 7)
    whole = smoothed().counts(keys, X, 50)
    assert whole.shape == (7, 2) and (whole.sum(1) == 50).all() and whole.min(0).max() > 0
    for batch_size in (3, 20):
        np.testing.assert_array_equal(smoothed(batch_size=batch_size).counts(keys, X, 50), whole)
    np.testing.assert_array_equal(smoothed().counts(keys[2:4], X[2:4], 50), whole[2:4])
    by_hand = np.zeros((7, 2), int)
    for d in range(5):
        drawn = smoothed()(X, key=jax.vmap(jax.random.fold_in, (0, None))(keys, d))
        by_hand[np.arange(7), np.argmax(drawn, -1)] += 1
    np.testing.assert_array_equal(smoothed().counts(keys, X, 5), by_hand)


def test_the_number_of_draws_sigma_and_weights_are_one_trace(key):
    smoothed(0.2, batch_size=21).counts(key, X, 40)
    before = len(TRACES)
    smoothed(0.5, batch_size=21).counts(key, X, 500)
    other = jax.tree_util.Partial(linear, 2 * W, BIAS)
    Smoothed(other, 0.2, batch_size=21).counts(key, X, 7)
    assert len(TRACES) == before


def test_the_radius_is_the_papers_and_never_beyond_the_true_one(key):
    sigma, n, alpha = 0.3, 20_000, 0.001
    found = smoothed(sigma, batch_size=7_000).certify(key, X, n0=50, n=n, alpha=alpha)
    true = np.abs(MARGIN) / np.linalg.norm(W)
    assert (found.label == ABSTAIN).any() and (found.label != ABSTAIN).sum() >= 4
    sure = found.label != ABSTAIN
    np.testing.assert_array_equal(found.label[sure], (MARGIN > 0)[sure])
    assert (found.radius <= true + 1e-6).all()
    # All that is lost is the confidence interval: some four standard errors of the probability.
    p = stats.norm.cdf(true / sigma)
    slack = 5 * np.sqrt(p * (1 - p) / n) + 10 / n
    assert (found.least >= p - slack)[sure].all()
    np.testing.assert_allclose(
        found.radius[sure], np.float32(sigma) * stats.norm.ppf(found.least[sure]), rtol=1e-12
    )
    assert (found.radius[~sure] == 0).all() and (found.least[~sure] <= 0.5).all()
    covered = found.covers(MARGIN > 0, 0.05)
    np.testing.assert_array_equal(covered, sure & (found.radius > 0.05))


def test_bounds_and_radii_of_counts_that_are_known(key, monkeypatch):
    """Cohen's own number: all of 100,000 draws at alpha .001 give a radius of 3.8115 sigma."""
    hits = np.array([100_000, 99_000, 50_001, 0])
    counts = np.stack([100_000 - hits, hits], 1)
    monkeypatch.setattr(
        Smoothed, "counts", lambda self, key, x, n: counts if n > 100 else np.eye(2)[[1, 1, 1, 1]]
    )
    found = smoothed(0.5).certify(key, X[:4])
    exact = stats.beta.ppf(0.001, hits, 100_000 - hits + 1)
    exact[-1] = 0
    np.testing.assert_allclose(found.least, exact, rtol=1e-9)
    np.testing.assert_array_equal(found.label, [1, 1, ABSTAIN, ABSTAIN])
    np.testing.assert_allclose(found.radius[:2], 0.5 * stats.norm.ppf(exact[:2]), rtol=1e-9)
    assert found.radius[0] / 0.5 == pytest.approx(3.8115, abs=1e-3)


def test_predictions_are_the_binomial_tests(key, monkeypatch):
    counts = np.array([[0, 9, 1], [5, 0, 5], [60, 40, 3], [0, 0, 0], [0, 0, 14], [70, 30, 0]])
    monkeypatch.setattr(Smoothed, "counts", lambda self, key, x, n: counts)
    for alpha in (0.3, 0.05, 0.001):
        found = smoothed().predict(key, X[:6], alpha=alpha)
        for row, label in zip(counts, found, strict=True):
            second, first = np.sort(row)[-2:]
            sure = first and stats.binomtest(int(first), int(first + second)).pvalue <= alpha
            assert label == (row.argmax() if sure else ABSTAIN)


def test_logits_that_are_not_finite_are_no_votes(key):
    broken = lambda x: jnp.where(x.reshape(x.shape[0], -1)[:, :2] > 0.5, jnp.nan, 1.0)
    counts = Smoothed(broken, 0.3).counts(key, X, 40)
    assert (counts[:, 0] < 40).all() and (counts[:, 1] == 0).all()
    assert (Smoothed(lambda x: broken(x) * jnp.nan, 0.3).predict(key, X, n=9) == ABSTAIN).all()


def test_a_smoothed_model_may_be_smoothed(key):
    twice = Smoothed(smoothed(0.1), 0.2)  # noise on noise: of the base, with the sum of variances
    keys = example_keys(key, 7)
    assert not np.allclose(twice(X, key=keys), smoothed(0.2)(X, key=keys))


def test_what_cannot_work_is_refused(key):
    with pytest.raises(ValueError, match=r"Smoothed: given n=0; expected an integer >= 1"):
        smoothed().counts(key, X, 0)
    with pytest.raises(ValueError, match=r"Smoothed: given alpha=0.7; expected a number between 0"):
        smoothed().certify(key, X, alpha=0.7)
