"""DeepFool against the paper's closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L1, L2, Linf, Targeted, Undetected
from advjax.attacks.deepfool import DeepFool

BALLS = {"l2": L2(), "linf": Linf()}


def affine(weights, bias, x):
    return x.reshape(x.shape[0], -1) @ weights + bias[None]


def make(classes):
    """A model so steep that every boundary is near and the box far."""
    rng = np.random.default_rng(classes)
    weights = rng.normal(size=(20, classes)).astype(np.float32)
    x = rng.uniform(0.45, 0.55, size=(7, 5, 4)).astype(np.float32)
    model = jax.tree_util.Partial(affine, jnp.asarray(weights), jnp.zeros(classes))
    bias = -jnp.mean(model(jnp.asarray(x)), axis=0)  # every boundary passes near the images
    model = jax.tree_util.Partial(affine, jnp.asarray(weights), bias)
    return model, weights, jnp.asarray(x), jnp.argmax(model(x), axis=1)


def closed_form(ball, model, weights, x, y):
    """The step to the nearest boundary: |f| / |w|_q in the direction that is steepest."""
    logits, steps = np.asarray(model(x)), []
    for row, label in zip(logits, np.asarray(y), strict=True):
        best = None
        for k in range(len(row)):
            if k == label:
                continue
            w, f = weights[:, k] - weights[:, label], abs(row[k] - row[label])
            if isinstance(ball, L2):
                length, step = f / np.linalg.norm(w), f / (w @ w) * w
            else:
                length, step = f / np.abs(w).sum(), f / np.abs(w).sum() * np.sign(w)
            if best is None or length < best[0]:
                best = (length, step)
        steps.append(best[1])
    return np.stack(steps).reshape(x.shape)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("name", BALLS)
def test_one_step_is_the_closed_form_on_an_affine_model(name, classes, key):
    model, weights, x, y = make(classes)
    record = DeepFool(ball=BALLS[name]).run(key, model, x, y)
    expected = 1.02 * closed_form(BALLS[name], model, weights, x, y)
    np.testing.assert_allclose(record.x_adv - x, expected, atol=2e-6)
    assert record.success.all() and (record.first_success == 1).all()
    # The clean image, one step (a pass to differentiate, a pass to judge), the last judgement.
    assert (record.forwards == 4).all() and (record.backwards == classes - 1).all()


def test_chunks_change_nothing(key):
    model, _, x, y = make(10)
    whole = DeepFool(ball=L2()).run(key, model, x, y)
    parts = DeepFool(ball=L2(), chunk=4).run(key, model, x, y)
    np.testing.assert_allclose(whole.x_adv, parts.x_adv, atol=1e-6)
    np.testing.assert_array_equal(whole.backwards, parts.backwards)


def test_few_classes_are_the_runners_up_of_the_clean_image(key):
    model, weights, x, y = make(10)
    record = DeepFool(ball=L2(), classes=2).run(key, model, x, y)
    second = np.argsort(-np.asarray(model(x)), axis=1)[:, 1]
    gap = np.take_along_axis(np.asarray(model(x)), np.stack([np.asarray(y), second], 1), axis=1)
    slope = weights[:, second] - weights[:, np.asarray(y)]
    length = 1.02 * (gap[:, 0] - gap[:, 1]) / np.linalg.norm(slope, axis=0)
    np.testing.assert_allclose(record.distance, length, rtol=1e-4)
    assert (record.backwards == 1).all()


def test_misclassified_images_stay_as_they_are_and_cost_no_gradient(key):
    model, _, x, y = make(10)
    record = DeepFool(ball=L2()).run(key, model, x, (y + 1) % 10)
    np.testing.assert_array_equal(record.x_adv, x)
    assert (record.backwards == 0).all() and (record.first_success == 0).all()


def test_a_targeted_run_reaches_its_target(key):
    model, _, x, y = make(10)
    record = Targeted(DeepFool(ball=L2())).run(key, model, x, (y + 3) % 10)
    assert record.success.all()
    assert (record.distance >= DeepFool(ball=L2()).run(key, model, x, y).distance - 1e-5).all()


def test_a_finite_eps_cuts_the_perturbation(key):
    model, _, x, y = make(10)
    free = np.asarray(DeepFool(ball=Linf()).run(key, model, x, y).distance)
    eps = float(np.sort(free)[3:5].mean())
    record = DeepFool(ball=Linf(eps)).run(key, model, x, y)
    # Kept in the ball, a step may still end where the overshoot alone led out of it.
    assert record.success[free <= eps].all() and not record.success[free / 1.02 > eps].any()
    assert (record.distance <= eps + 1e-6).all()


def test_refusals_say_what_is_taken():
    with pytest.raises(TypeError, match="expected L2 or Linf"):
        DeepFool(ball=L1(1.0))
    with pytest.raises(ValueError, match="integer >= 2"):
        DeepFool(ball=L2(), classes=1)
    with pytest.raises(ValueError, match="chunk=0"):
        DeepFool(ball=L2(), chunk=0)
    with pytest.raises(TypeError, match="goal=Undetected.*expected Misclassify.* or Target"):
        DeepFool(ball=L2(), goal=Undetected())


def offset_scores(weights, x):
    score = x.reshape(x.shape[0], -1) @ weights
    return 1e3 + jnp.stack([jnp.zeros_like(score), score], axis=1)


def test_a_success_is_more_than_the_rounding_of_the_logits(key):
    """Else a forward pass of a batch of another size may call it back."""
    weights = jnp.asarray([1.0, -1.0, 0.5, 0.25])
    model = jax.tree_util.Partial(offset_scores, weights)
    x = jnp.asarray([[0.5, 0.5003, 0.0, 0.0], [0.5, 0.6, 0.0, 0.0]])  # the first near the boundary
    record = DeepFool(ball=L2()).run(key, model, x, jnp.zeros(2, jnp.int32))
    logits = model(record.x_adv)
    assert record.success.all()
    assert (logits[:, 1] - logits[:, 0] > 1e-6 * jnp.abs(logits).max(axis=1)).all()
