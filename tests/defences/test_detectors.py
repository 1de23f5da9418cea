"""Detectors against scikit-learn and by hand, and the attack that knows them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import KernelDensity as ScikitLearns

from advjax.attacks import PGD, Targeted
from advjax.balls import L2
from advjax.defences.detectors import (
    FeatureSqueezing,
    KernelDensity,
    Mahalanobis,
    WithDetector,
    roc,
    threshold_at,
    undetected_target,
)
from advjax.defences.transforms import BitDepth, MedianFilter

RNG = np.random.default_rng(0)
Y = np.arange(60) % 3
CENTRES = RNG.uniform(0.3, 0.7, (3, 2, 3, 1))
X = jnp.asarray(np.clip(CENTRES[Y] + 0.05 * RNG.normal(size=(60, 2, 3, 1)), 0, 1), jnp.float32)
W = jnp.asarray((CENTRES - CENTRES.mean(0)).reshape(3, -1).T * 20, jnp.float32)
BIAS = -10 * jnp.asarray((CENTRES**2 - CENTRES.mean(0) ** 2).sum((1, 2, 3)), jnp.float32)
MODEL = jax.tree_util.Partial(lambda w, b, x: x.reshape(x.shape[0], -1) @ w + b[None], W, BIAS)
PIXELS = lambda x: x.reshape(x.shape[0], -1)


def test_auc_and_curve_are_scikit_learns_with_ties_too():
    for digits in (1, 8):
        clean = np.round(RNG.normal(size=200), digits)
        adversarial = np.round(RNG.normal(size=150) + 0.7, digits)
        found = roc(clean, adversarial)
        kind, scores = np.repeat([0, 1], [200, 150]), np.concatenate([clean, adversarial])
        assert found.auc == pytest.approx(roc_auc_score(kind, scores), abs=1e-12)
        fpr, tpr, thresholds = roc_curve(kind, scores, drop_intermediate=False)
        np.testing.assert_allclose(found.false_positives, fpr)
        np.testing.assert_allclose(found.true_positives, tpr)
        np.testing.assert_array_equal(found.thresholds, thresholds)
    assert roc([0.0, 1.0], [2.0, 3.0]).auc == 1 and roc([1.0], [1.0]).auc == 0.5
    drawn = roc([0.0, 1.0], [0.5, 3.0]).chart("squeezing")
    assert "AUC 0.750" in drawn.html() and len(drawn.lines) == 2


def test_a_threshold_lets_at_most_its_share_through():
    clean = RNG.normal(size=103)
    for share in (0.0, 0.05, 0.5, 0.99):
        threshold = threshold_at(clean, share)
        assert (clean > threshold).mean() <= share < (clean >= threshold).mean()
    assert (np.ones(9) > threshold_at(np.ones(9), 0.3)).sum() == 0


def test_feature_squeezing_is_the_largest_l1_distance():
    squeezers = BitDepth(1), MedianFilter(2)
    run = jax.jit(lambda detector: detector(X))
    found = run(FeatureSqueezing(MODEL, squeezers))
    softmax = lambda x: np.asarray(jax.nn.softmax(MODEL(x)))
    each = [np.abs(softmax(X) - softmax(squeeze(X))).sum(-1) for squeeze in squeezers]
    np.testing.assert_allclose(found, np.maximum(*each), rtol=1e-5, atol=1e-6)
    adaptive = FeatureSqueezing(MODEL, squeezers).adaptive()
    np.testing.assert_array_equal(run(adaptive), found)
    assert (FeatureSqueezing(MODEL, (lambda x: x,))(X) == 0).all()
    # Past rounding alone no gradient comes back from the squeezed copy.
    slope = lambda detector: jax.jit(jax.grad(lambda x: detector(x).sum()))(X)
    assert not np.allclose(slope(adaptive), slope(FeatureSqueezing(MODEL, squeezers)))


def test_mahalanobis_is_the_nearest_of_scikit_learns_distances():
    detector = Mahalanobis.fit(PIXELS, X, Y, ridge=0.0, batch_size=25)
    flat = np.asarray(X, np.float64).reshape(60, -1)
    means = np.stack([flat[k == Y].mean(0) for k in range(3)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(flat - means[Y])
    seen = RNG.random((5, 2, 3, 1))
    shifted = [covariance.mahalanobis(seen.reshape(5, -1) - mean) for mean in means]
    found = detector(jnp.asarray(seen, jnp.float32))
    np.testing.assert_allclose(found, np.min(shifted, 0), rtol=1e-4)
    # The logits of a linear softmax may be degenerate: the ridge keeps the score finite.
    logits = lambda x: jnp.concatenate([MODEL(x), MODEL(x)], -1)
    assert jnp.isfinite(Mahalanobis.fit(logits, X, Y, ridge=1e-3)(X)).all()
    with pytest.raises(ValueError, match=r"Mahalanobis: given no image of \[1\]; expected all"):
        Mahalanobis.fit(PIXELS, X[:3], [0, 2, 2])


def test_kernel_density_is_scikit_learns_of_the_predicted_class():
    seen = RNG.random((8, 2, 3, 1)).astype(np.float32)
    predicted = np.asarray(jnp.argmax(MODEL(seen), -1))
    assert len(set(predicted)) > 1
    offset = lambda x: PIXELS(x) + 30  # lengths that float32 subtracts badly
    flat = np.asarray(X, np.float64).reshape(60, -1)
    for width in (0.05, 1.2):
        each = [ScikitLearns(bandwidth=width).fit(flat[k == Y]) for k in range(3)]
        far = [each[k].score(v.reshape(1, -1)) for k, v in zip(predicted, seen, strict=True)]
        detector = KernelDensity.fit(MODEL, PIXELS, X, Y, bandwidth=width, batch_size=25)
        found = jax.jit(lambda detector: detector(seen))(detector)
        np.testing.assert_allclose(found, -np.asarray(far), rtol=1e-4, atol=1e-4)
        moved = KernelDensity.fit(MODEL, offset, X, Y, bandwidth=width)(seen)
        np.testing.assert_allclose(moved, found, rtol=1e-2)
        slope = jax.grad(lambda x, d=detector: d(x).sum())(jnp.asarray(seen))
        assert jnp.isfinite(slope).all() and (slope != 0).any()
    with pytest.raises(ValueError, match=r"KernelDensity: given no image of \[2\]; expected all"):
        KernelDensity.fit(MODEL, PIXELS, X[:3], [0, 1, 1])
    with pytest.raises(ValueError, match=r"KernelDensity: given bandwidth=0.0; expected numbers >"):
        KernelDensity.fit(MODEL, PIXELS, X, Y, bandwidth=0)


def test_the_further_class_wins_exactly_where_the_detector_raises_an_alarm():
    detector = Mahalanobis.fit(PIXELS, X, Y)
    scores, logits = detector(X), MODEL(X) - 100  # the largest logit may be negative
    threshold = threshold_at(scores, 0.2)
    low = jax.tree_util.Partial(lambda w, b, x: MODEL.func(w, b, x) - 100, W, BIAS)
    for scale in (0.01, 5.0):
        joint = WithDetector(low, detector, threshold, scale=scale)(X)
        assert joint.shape == (60, 4)
        expected = np.where(scores > threshold, 3, np.argmax(logits, -1))
        np.testing.assert_array_equal(np.argmax(joint, -1), expected)
    keys = jax.random.split(jax.random.key(0), 60)
    target = np.asarray(undetected_target(keys, joint, jnp.asarray(Y)))
    others = np.array(joint)[:, :3]
    others[np.arange(60), Y] = -np.inf
    np.testing.assert_array_equal(target, others.argmax(-1))


@pytest.mark.parametrize("kind, scale", [(Mahalanobis, 0.02), (KernelDensity, 0.1)])
def test_an_attack_that_does_not_know_the_detector_is_caught_and_one_that_does_is_not(
    key, kind, scale
):
    if kind is Mahalanobis:
        detector = Mahalanobis.fit(PIXELS, X, Y)
    else:
        detector = KernelDensity.fit(MODEL, PIXELS, X, Y, bandwidth=0.1)
    threshold = threshold_at(detector(X), 0.05)
    x, y = X[:12], jnp.asarray(Y[:12])
    attack = PGD(ball=L2(1.0), step_size=0.1, steps=30)
    naive = attack.run(key, MODEL, x, y)
    caught = detector(naive.x_adv) > threshold
    assert naive.success.all() and caught.all()
    assert roc(detector(X), detector(naive.x_adv)).auc > 0.99
    joint = WithDetector(MODEL, detector, threshold, scale=scale)
    knowing = Targeted(attack, choose=undetected_target).run(key, joint, x, y)
    assert knowing.success.mean() > 0.9
    found = knowing.x_adv[knowing.success]
    assert (detector(found) <= threshold).all()
    assert (jnp.argmax(MODEL(found), -1) != y[knowing.success]).all()


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"given false_positives=1.0; expected 0 <= a share < 1"):
        threshold_at([1.0], 1.0)
    with pytest.raises(ValueError, match=r"roc: given 0 and 1 scores; expected at least one of"):
        roc([], [1.0])
