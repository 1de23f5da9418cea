"""Random self-ensemble: where the noise goes, whose it is, and what is trained with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import Classifier, create, init
from advjax.answers import example_keys, fold_in_each
from advjax.attacks import EOT, PGD
from advjax.balls import Linf
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


def test_an_example_has_its_own_noise_whoever_is_beside_it():
    model = RandomSelfEnsemble(MODEL, n=2)
    whole = answer(model, X, KEYS)
    np.testing.assert_allclose(answer(model, X[1:3], KEYS[1:3]), whole[1:3], rtol=1e-5, atol=1e-6)
    assert not np.allclose(answer(model, X, KEYS[::-1]), whole)


def test_sigmas_are_one_trace_and_sweep_by_vmap():
    traced = []

    @jax.jit
    def run(model):
        traced.append(None)
        return model(X, key=KEYS)

    sigmas = np.asarray([0.1, 0.3], np.float32)
    alone = [run(RandomSelfEnsemble(MODEL, sigma_first=float(s), n=2)) for s in sigmas]
    assert len(traced) == 1
    at = lambda s: RandomSelfEnsemble(MODEL, sigma_first=s, n=2)(X, key=KEYS)
    swept = jax.jit(jax.vmap(at))(sigmas)
    np.testing.assert_allclose(swept, jnp.stack(alone), rtol=1e-5, atol=1e-6)
    assert not np.allclose(alone[0], alone[1])


def test_it_is_attacked_over_its_draws():
    y = jnp.argmax(PLAIN, -1)
    attack = EOT(PGD(ball=Linf(eps=0.3), steps=1), samples=4)
    found = attack.run(jax.random.key(0), RandomSelfEnsemble(MODEL, n=1), X, y)
    assert (found.zero_gradient == 0).all() and (found.forwards == 4 * 3).all()


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


def test_what_cannot_work_is_refused():
    perceptron = create("mlp", classes=3, hidden=(2,))
    flat = Classifier(perceptron, init(perceptron, jax.random.key(0), X.shape[1:]))
    with pytest.raises(ValueError, match=r"RandomSelfEnsemble: given Classifier that calls no"):
        RandomSelfEnsemble(flat)(X, key=KEYS)
    with pytest.raises(ValueError, match=r"RandomSelfEnsemble: given n=0; an integer >= 1"):
        RandomSelfEnsemble(MODEL, n=0)
    with pytest.raises(ValueError, match=r"RandomSelfEnsemble: given sigma_inner=-1.0; numbers"):
        RandomSelfEnsemble(MODEL, sigma_inner=-1)
