"""Host functions as models: the same answers, no gradient, and no way to block the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from advjax import FGSM, Linf, evaluate, load
from advjax.answers import runs_on_host
from advjax.attacks.core.oracle import Labels
from advjax.attacks.transferred import Transferred
from advjax.data import to_float
from advjax.models.external import External, from_sklearn

WEIGHTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def on_host(x):
    assert isinstance(x, np.ndarray) and x.dtype == np.float32
    return x.reshape(len(x), -1).astype(np.float64) @ WEIGHTS


MODEL = External(on_host, 3)


@pytest.fixture(scope="module")
def digits():
    train, test = load("digits", "train"), load("digits", "test")
    flat = lambda d: np.asarray(to_float(d.x)).reshape(len(d), -1)
    return flat(train), train.y, flat(test), test


def images(batch, seed=1):
    return np.random.default_rng(seed).uniform(size=(batch, 2, 3, 2)).astype(np.float32)


def test_it_answers_as_the_function_does_inside_and_outside_of_jit_and_vmap():
    x = images(5)
    scores = x.reshape(5, -1) @ WEIGHTS
    for call in (MODEL, jax.jit(MODEL), lambda x: jax.jit(lambda m, x: m(x))(MODEL, x)):
        out = call(x)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, scores, atol=1e-5)
    many = images(24).reshape(2, 3, 4, 2, 3, 2)
    mapped = jax.jit(jax.vmap(jax.vmap(MODEL)))(many)
    np.testing.assert_allclose(mapped, many.reshape(2, 3, 4, 12) @ WEIGHTS, atol=1e-5)
    np.testing.assert_allclose(MODEL.scores(x), scores, atol=1e-5)


def test_equal_functions_are_one_trace():
    traces = []

    @jax.jit
    def ask(model, x):
        traces.append(None)
        return model(x)

    for _ in range(3):
        ask(External(on_host, 3), images(2))
    assert len(traces) == 1


def test_it_refuses_to_be_differentiated(key):
    x, y = images(2), np.array([0, 1])
    with pytest.raises(TypeError, match="no gradient"):
        jax.grad(lambda x: MODEL(x).sum())(x)
    with pytest.raises(TypeError, match="no gradient"):
        FGSM(ball=Linf(0.1))(key, MODEL, x, y)
    # Where the gradient stops before it, there is nothing to refuse.
    held = lambda x: MODEL(jax.lax.stop_gradient(x)).sum() + x.sum()
    assert (jax.grad(held)(x) == 1).all()
    assert (jax.grad(lambda x: Labels(MODEL)(x).sum().astype(x.dtype) + x.sum())(x) == 1).all()


def test_wrong_shapes_and_settings_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\).*expected \(4, 2\)"):
        External(on_host, 2).scores(images(4))
    for make, error in (
        (lambda: External(3, 3), TypeError),
        (lambda: External(on_host, 1), ValueError),
        (lambda: External(on_host, 3.0), ValueError),
    ):
        with pytest.raises(error, match="expected"):
            make()


def test_it_is_found_wherever_it_is_in_a_tree():
    linear = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, WEIGHTS)
    attack = Transferred(FGSM(ball=Linf(0.1)), source=linear)
    assert runs_on_host(MODEL) and runs_on_host({"a": (linear, Labels(MODEL))})
    assert not runs_on_host((linear, attack)) and not runs_on_host(on_host)


def test_many_large_batches_at_once_do_not_block():
    """Batches in flight ask while others compute; a callback that waits for JAX would hang."""
    weights = np.ones((3072, 4), np.float32)
    model = External(lambda x: x.reshape(len(x), -1) @ weights, 4)

    @jax.jit
    def step(model, x):
        return model(jnp.tanh(x)).sum(axis=1)

    x = np.zeros((256, 32, 32, 3), np.float32)
    outs = [step(model, jax.device_put(x, jax.devices()[0])) for _ in range(20)]
    assert all((np.asarray(out) == 0).all() for out in outs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogisticRegression(tol=1e-3),
        lambda: LinearSVC(C=0.1, tol=0.1),
        lambda: SVC(break_ties=True),
        lambda: DecisionTreeClassifier(random_state=0),
        lambda: KNeighborsClassifier(3),
    ],
    ids=["logistic", "linear svm", "svm", "tree", "neighbours"],
)
def test_an_estimator_predicts_as_it_does_itself(make, digits, key):
    x, y, flat, test = digits
    estimator = make().fit(x[:400], y[:400])
    model = from_sklearn(estimator)
    said = estimator.predict(flat)
    np.testing.assert_array_equal(np.argmax(model.scores(to_float(test.x)), 1), said)
    hard = from_sklearn(estimator, method="predict")
    np.testing.assert_array_equal(hard.scores(flat), np.eye(10)[said])
    found = evaluate(model, test, {}, key=key, devices=jax.devices()[:1])
    assert found.clean.correct == (said == test.y).sum() > 350


def test_scores_are_log_probabilities_and_halves_of_a_margin(digits):
    x, y, flat, _ = digits
    tree = DecisionTreeClassifier(max_depth=4, random_state=0).fit(x, y)
    share = jax.nn.softmax(from_sklearn(tree).scores(flat))
    np.testing.assert_allclose(share, tree.predict_proba(flat), atol=1e-5)
    assert np.isfinite(from_sklearn(tree).scores(flat)).all()
    two = LogisticRegression(tol=1e-3).fit(x[y < 2], y[y < 2])
    scores = from_sklearn(two).scores(flat)
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], two.decision_function(flat), rtol=1e-4)
    np.testing.assert_allclose(jax.nn.softmax(scores), two.predict_proba(flat), atol=1e-5)


@pytest.mark.parametrize("method", [None, "predict_proba", "predict"])
def test_classes_that_it_has_never_seen_are_the_least_likely(method, digits):
    x, y, flat, _ = digits
    some = (y == 1) | (y == 3) | (y == 8)
    estimator = LogisticRegression(tol=1e-3).fit(x[some], y[some])
    scores = from_sklearn(estimator, method=method, classes=10).scores(flat)
    assert scores.shape == (len(flat), 10) and np.isfinite(scores).all()
    np.testing.assert_array_equal(np.argmax(scores, 1), estimator.predict(flat))
    others = np.delete(scores, [1, 3, 8], axis=1)
    assert (others <= scores[:, [1, 3, 8]].min(1, keepdims=True)).all()


def test_estimators_that_cannot_be_models_are_refused(digits):
    x, y, _, _ = digits
    x, y = x[:200], y[:200]
    for make, error, said in (
        (lambda: from_sklearn(object()), TypeError, "fitted classifier"),
        (lambda: from_sklearn(LogisticRegression()), ValueError, "fitted"),
        (lambda: from_sklearn(LinearSVC().fit(x, y), method="predict_proba"), TypeError, "has no"),
        (lambda: from_sklearn(LinearSVC().fit(x, y), method="score"), ValueError, "one of"),
        (lambda: from_sklearn(LinearSVC().fit(x, y), classes=9), ValueError, "at least 10"),
        (lambda: from_sklearn(LinearSVC().fit(x, y.astype(str))), TypeError, "numbers 0, 1"),
    ):
        with pytest.raises(error, match=said):
            make()
    votes = SVC(decision_function_shape="ovo").fit(x, y)
    with pytest.raises(ValueError, match="ovr"):
        from_sklearn(votes).scores(x)


def test_a_transferred_attack_fools_it(digits, key):
    x, y, _, test = digits
    estimator = LogisticRegression(tol=1e-3).fit(x, y)
    weights = jnp.asarray(estimator.coef_.T, jnp.float32)
    twin = jax.tree_util.Partial(lambda w, x: x.reshape(x.shape[0], -1) @ w, weights)
    attack = Transferred(FGSM(ball=Linf(0.3)), source=twin)
    one = jax.devices()[:1]
    found = evaluate(from_sklearn(estimator), test.subset(100), {"t": attack}, key=key, devices=one)
    assert found.clean.value > 0.85 and found.robust["t"].value < 0.1
