from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doubles import Brighten, brightness, greys
from linear import linear

from advjax import L2, PGD, Linf, WorstOf
from advjax.data import load, to_float
from advjax.evaluation import robustness_curve

curve_of = partial(robustness_curve, devices=jax.devices()[:1])
X, Y = greys(0.1, 0.2, 0.3, 0.4, 0.6), np.zeros(5, int)


@pytest.fixture(scope="module")
def digits():
    """Real digits and a linear classifier fitted to them by least squares."""
    train, test = load("digits"), load("digits", "test").take(slice(0, 120))
    x = np.asarray(to_float(train.x)).reshape(len(train), -1)
    targets = 10.0 * np.eye(10)[train.y] - 5
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(64), x.T @ targets)
    return jax.tree_util.Partial(linear, jnp.asarray(weights, jnp.float32)), test


def test_a_curve_by_hand(key):
    curve = curve_of(brightness, (X, Y), Brighten(ball=Linf(0.1)), [0.25, 0, 0.15], key=key)
    assert curve.eps == (0.0, 0.15, 0.25)
    assert [a.correct for a in curve.accuracy] == [4, 3, 2]  # the last one is wrong when clean
    assert curve.standing.shape == (3, 5) and curve.standing[2].tolist() == [1, 1, 0, 0, 0]
    assert curve.to_dict()["accuracy"][1]["correct"] == 3


def test_a_function_of_eps_is_an_attack_too(key):
    make = lambda eps: Brighten(ball=Linf(2 * eps))
    curve = curve_of(brightness, (X, Y), make, [0.11], key=key)
    assert [a.correct for a in curve.accuracy] == [2]


def test_all_eps_share_the_traces_of_one(key, digits):
    model, data = digits
    traces = []

    def counted(weights, x):
        traces.append(x.shape)
        return linear(weights, x)

    model = jax.tree_util.Partial(counted, *model.args)
    curve_of(model, data, PGD(ball=Linf(0.1), steps=2), [0.1], key=key)
    first = len(traces)
    curve = curve_of(model, data, PGD(ball=Linf(0.3), steps=2), np.linspace(0, 0.2, 8), key=key)
    assert len(traces) == first and len(curve.eps) == 8


def test_robust_accuracy_of_real_digits_falls_with_eps_to_nothing(key, digits):
    model, data = digits
    attack = PGD(ball=Linf(0.1), steps=10)
    curve = curve_of(model, data, attack, [0, 0.02, 0.05, 0.1, 0.2, 1.0], key=key)
    shares = np.array([a.value for a in curve.accuracy])
    error = np.sqrt(shares * (1 - shares) / len(data))
    assert (np.diff(shares) <= 2 * error[:-1]).all()
    assert shares[0] > 0.85 and shares[-1] == 0 and shares[0] > shares[2] > shares[4]


def test_wrong_radii_are_refused(key):
    for bad in ([], [-0.1], [np.nan]):
        with pytest.raises(ValueError, match="eps: given"):
            curve_of(brightness, (X, Y), Brighten(ball=Linf(0.1)), bad, key=key)
    two = WorstOf(attacks=(PGD(ball=Linf(0.1)), PGD(ball=L2(0.5))))
    with pytest.raises(ValueError, match=r"given eps \[0.1.*0.5\]; expected one finite eps > 0"):
        curve_of(brightness, (X, Y), two, [0.1], key=key)
    with pytest.raises(ValueError, match="one finite eps > 0"):
        curve_of(brightness, (X, Y), PGD(ball=Linf(0.0)), [0.1], key=key)
