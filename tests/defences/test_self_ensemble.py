"""Random self-ensemble: where the noise goes, whose it is, and what is trained with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import Classifier, create, init
from advjax.answers import example_keys, fold_in_each
from advjax.defences.self_ensemble import NoisyConvolutions, RandomSelfEnsemble
from advjax.training import LinenApply, Standard

NET = create("lenet5", classes=3, filters=(2, 3), width=4)
X = jnp.asarray(np.random.default_rng(0).random((4, 4, 4, 1)), jnp.float32)
MODEL = Classifier(NET, init(NET, jax.random.key(0), X.shape[1:]))
KEYS = example_keys(jax.random.key(1), 4)
PLAIN = jax.jit(lambda model, x: model(x))(MODEL, X)


@jax.jit
def answer(model, x, keys):
    return model(x, key=keys)


def noisy_pass(keys, sigma_first, sigma_inner):
    """One pass by hand: noise before both convolutions."""
    params = MODEL.variables["params"]

    def conv(x, name, n, sigma):
        drawn = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(fold_in_each(keys, n))
        x = x + sigma * drawn
        kernel = params[name]["kernel"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.maximum(x + params[name]["bias"][None, None, None], 0)
        return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))

    x = conv(conv(X, "Conv_0", 1, sigma_first), "Conv_1", 2, sigma_inner).reshape(4, -1)
    dense = lambda x, name: x @ params[name]["kernel"] + params[name]["bias"][None]
    return dense(jnp.maximum(dense(x, "Dense_0"), 0), "Dense_1")


def test_the_prediction_is_the_mean_softmax_of_passes_with_noise_before_each_convolution():
    found = answer(RandomSelfEnsemble(MODEL, n=3), X, KEYS)
    by_hand = jax.jit(lambda p: jax.nn.softmax(noisy_pass(fold_in_each(KEYS, p), 0.2, 0.1)))
    passes = [by_hand(p) for p in range(3)]
    np.testing.assert_allclose(jnp.exp(found), sum(passes) / 3, rtol=1e-4)
    np.testing.assert_allclose(jnp.exp(found).sum(-1), 1, rtol=1e-5)
    still = answer(RandomSelfEnsemble(MODEL, sigma_first=0.0, sigma_inner=0.0, n=2), X, KEYS)
    np.testing.assert_allclose(still, jax.nn.log_softmax(PLAIN), rtol=1e-4, atol=1e-5)


def test_training_draws_the_same_noise_and_the_network_takes_the_weights():
    noisy = NoisyConvolutions(NET, sigma_first=0.3)
    assert noisy == NoisyConvolutions(create("lenet5", classes=3, filters=(2, 3), width=4), 0.3)
    variables = init(noisy, jax.random.key(0), X.shape[1:])
    jax.tree.map(np.testing.assert_array_equal, variables["params"], MODEL.variables["params"])
    assert variables["hyper"] == {"sigma_first": np.float32(0.3), "sigma_inner": np.float32(0.1)}
    in_evaluation = jax.jit(lambda v, x: noisy.apply(v, x))(variables, X)
    np.testing.assert_allclose(in_evaluation, PLAIN, rtol=1e-5, atol=1e-6)
    params, stats = variables["params"], {"hyper": variables["hyper"]}
    apply = LinenApply(noisy)
    train = jax.jit(lambda stats: apply(params, stats, X, key=KEYS, train=True))
    trained, kept = train(stats)
    assert not np.allclose(trained, PLAIN) and kept["hyper"] == variables["hyper"]
    swept = {"hyper": {"sigma_first": 0.0, "sigma_inner": 0.0}}
    calm, _ = train(swept)
    np.testing.assert_allclose(calm, PLAIN, rtol=1e-5, atol=1e-6)
    batch = {"x": X, "y": jnp.zeros(4, int)}
    loss = lambda params: Standard()(KEYS, apply, params, stats, batch)[0]
    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(g).all() and np.any(g != 0) for g in jax.tree.leaves(grads))


def test_noise_in_training_does_not_depend_on_the_number_of_devices():
    net = create("densenet48", classes=3, blocks=1, filters=2, batch_norm=True)
    noisy = NoisyConvolutions(net, axis_name="batch")
    variables = init(noisy, jax.random.key(0), (4, 4, 1))

    def train(x):
        rngs = {"dropout": jax.random.key(1)}
        return noisy.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    run = jax.jit(jax.vmap(train, axis_name="batch"))
    whole, split = run(X[None]), run(X.reshape(2, 2, 4, 4, 1))
    np.testing.assert_allclose(whole[0], split.reshape(4, 3), rtol=1e-3, atol=1e-4)


def test_a_network_without_convolutions_is_refused():
    perceptron = create("mlp", classes=3, hidden=(2,))
    flat = Classifier(perceptron, init(perceptron, jax.random.key(0), X.shape[1:]))
    with pytest.raises(ValueError, match=r"RandomSelfEnsemble: given Classifier that calls no"):
        RandomSelfEnsemble(flat)(X, key=KEYS)
