"""A random transform in front of a model: per image, per key, differentiable, and data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import EOT, L2, PGD, Transformed, as_model, bpda, example_keys, pytree
from advjax.evaluation import evaluate


def noise(sigma, key, x):
    return x + sigma * jax.random.normal(key, x.shape)


def shifted(key, x):
    return jnp.roll(x, jax.random.randint(key, (), 0, x.shape[0]), axis=0)


def test_every_image_is_transformed_by_its_own_key(tiny, key):
    model, _, x, _ = tiny
    keys = example_keys(key, 8)
    whole = Transformed(model, shifted)(x, key=keys)
    for i in range(8):
        shift = jax.random.randint(jax.random.fold_in(keys[i], 0), (), 0, 4)
        seen = jnp.roll(x[i], shift, axis=0)
        np.testing.assert_allclose(whole[i], model(seen[None])[0], rtol=1e-5)
    assert not np.allclose(whole, Transformed(model, shifted)(x, key=keys[::-1]))


def test_a_randomised_model_behind_it_has_draws_of_its_own(tiny, key):
    model, _, x, _ = tiny
    twice = Transformed(Transformed(model, shifted), shifted)
    keys = example_keys(key, 8)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    outer = jax.vmap(shifted)(fold(keys, 0), x)
    expected = Transformed(model, shifted)(outer, key=fold(keys, 1))
    np.testing.assert_array_equal(twice(x, key=keys), expected)


def test_its_numbers_are_data_and_it_stays_randomised(tiny, traces, key):
    model, _, x, y = tiny
    attack = EOT(PGD(ball=L2(0.4), steps=2), samples=3)
    for i, sigma in enumerate((0.1, 0.2)):
        noisy = Transformed(model, jax.tree_util.Partial(noise, sigma))
        assert as_model(noisy) is noisy and noisy.stochastic
        attack(key, noisy, x, y)
        if i == 0:
            before = len(traces)
    assert len(traces) == before


def test_eot_goes_through_the_transform_and_finds_what_holds_on_average(tiny, key):
    """With noise of mean zero the average of a linear model is the model itself: the attack through
    many draws takes its gradient's direction, whose step on a linear model is known."""
    model, _, x, y = tiny
    noisy = Transformed(model, jax.tree_util.Partial(noise, 0.3))
    attack = PGD(ball=L2(0.3), steps=1, step_size=0.3, random_start=False, best=False)
    averaged = EOT(attack, samples=256, chunk=64)(key, noisy, x, y)
    exact = attack(key, model, x, y)
    cosine = jnp.sum((averaged - x) * (exact - x), axis=(1, 2, 3)) / 0.3**2
    assert (cosine > 0.95).all()


def test_a_transform_without_gradient_is_approximated(tiny, key):
    model, _, x, y = tiny

    def bits(key, x):
        return jnp.round(4 * (x + 0.1 * jax.random.uniform(key, x.shape))) / 4

    attack = EOT(PGD(ball=L2(0.5), steps=3), samples=4)
    lost = attack.run(key, Transformed(model, bits), x, y)
    assert (lost.zero_gradient == 3).all()
    plain = lambda key, x: bpda(partial(bits, key))(x)
    found = attack.run(key, Transformed(model, plain), x, y)
    assert (found.zero_gradient == 0).all() and found.loss.sum() > lost.loss.sum()


def test_it_is_evaluated_over_its_draws(tiny, key):
    model, _, x, y = tiny
    noisy = Transformed(model, jax.tree_util.Partial(noise, 0.2))
    found = evaluate(noisy, (x, y), EOT(PGD(ball=L2(0.1), steps=2), samples=4), key=key, draws=30)
    assert found.attacks["EOT"].draws == 30
    assert 0 < found.attacks["EOT"].wrong_draws.sum() < 180


def test_what_cannot_be_called_is_refused(tiny):
    with pytest.raises(TypeError, match=r"Transformed: given str; expected a function \(key, x\)"):
        Transformed(tiny[0], "noise")
    with pytest.raises(TypeError, match="a model is a callable"):
        Transformed(3, shifted)


def test_a_transform_may_be_a_pytree(tiny, key):
    @pytree
    class Noise:
        sigma: float

        def __call__(self, key, x):
            return noise(self.sigma, key, x)

    model, _, x, _ = tiny
    keys = example_keys(key, 8)
    ours = Transformed(model, Noise(sigma=0.2))
    other = Transformed(model, jax.tree_util.Partial(noise, 0.2))
    np.testing.assert_array_equal(ours(x, key=keys), other(x, key=keys))
    assert len(jax.tree.leaves(ours)) == 2
