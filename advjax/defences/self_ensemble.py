"""Random self-ensemble: noise before every convolution, and the mean of several passes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.answers import as_model, example_keys, fold_in_each
from advjax.arguments import check_count, check_number
from advjax.defences._intercept import Change, call_changed
from advjax.pytrees import Array, ArrayLike, Key, pytree, static

SIGMA_FIRST, SIGMA_INNER = 0.2, 0.1  # the paper's, of images in [0, 1]


@pytree
class RandomSelfEnsemble:
    """Random self-ensemble: Gaussian noise before every convolution, the prediction the mean
    softmax of ``n`` noisy passes (Liu et al., ECCV 2018, section 3).

    The answer is the logarithm of that mean. The network has to be trained with the same noise,
    see ``NoisyConvolutions``. Gradients of single draws are noisy, which makes weak attacks look
    weak: attack it under ``EOT``.

    Attributes:
      model: a ``Classifier`` with convolutions, of the zoo or any linen network.
      sigma_first: standard deviation of the noise before the first convolution, >= 0, in pixel
        units after the network's normalisation; a leaf.
      sigma_inner: of the noise before all others, in the units of the activations; a leaf.
      n: passes of one prediction; they go through the network as one batch.
    """

    model: Any = dataclasses.field(kw_only=False)
    sigma_first: ArrayLike = SIGMA_FIRST
    sigma_inner: ArrayLike = SIGMA_INNER
    n: int = static(default=10)
    stochastic = True

    def check(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))
        check_number("RandomSelfEnsemble", "sigma_first", self.sigma_first, zero=True)
        check_number("RandomSelfEnsemble", "sigma_inner", self.sigma_inner, zero=True)
        check_count("RandomSelfEnsemble", "n", self.n)

    def __call__(self, x: Array, *, key: Key) -> Array:
        keys = jax.vmap(fold_in_each, (None, 0))(key, jnp.arange(self.n)).reshape(-1)
        many = jnp.broadcast_to(x, (self.n, *x.shape)).reshape(-1, *x.shape[1:])
        noise = _noise(keys, self.sigma_first, self.sigma_inner)
        logits = call_changed("RandomSelfEnsemble", self.model, many, nn.Conv, noise)
        passes = jax.nn.log_softmax(logits.reshape(self.n, x.shape[0], -1))
        return jax.nn.logsumexp(passes, axis=0) - jnp.log(jnp.float32(self.n))


class NoisyConvolutions(nn.Module):
    """A network that is trained with the noise of ``RandomSelfEnsemble`` (Liu et al. 2018, alg. 1).

    ``Training(module=NoisyConvolutions(create("lenet5")), ...)``. Its parameters are those of the
    network itself, so ``Classifier(network, variables)`` takes them. In evaluation mode there is no
    noise. The sigmas are variables of the collection ``hyper``, as the rate of ``Dropout`` is: they
    can be traced, swept and vmapped. Example ``i`` of a batch draws from
    ``fold_in(make_rng("dropout"), i)``, counted over the mapped axis.

    Attributes:
      network: a linen network ``network(x, train=...)`` with convolutions.
      sigma_first: first value of the noise's standard deviation before the first convolution.
      sigma_inner: of that before all others.
      axis_name: the mapped axis the batch is split over, if any.
    """

    network: nn.Module
    sigma_first: float = SIGMA_FIRST
    sigma_inner: float = SIGMA_INNER
    axis_name: str | None = None

    def setup(self) -> None:
        network = self.network
        if self.axis_name is not None and hasattr(network, "axis_name"):
            network = network.clone(axis_name=self.axis_name)
        self.within = network
        nn.share_scope(self, self.within)
        number = lambda name: self.variable("hyper", name, jnp.asarray, getattr(self, name))
        self.sigmas = number("sigma_first"), number("sigma_inner")

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if not train:
            return self.within(x)
        first = 0 if self.axis_name is None else jax.lax.axis_index(self.axis_name) * x.shape[0]
        keys = example_keys(self.make_rng("dropout"), first + jnp.arange(x.shape[0]))
        noise = _noise(keys, *(sigma.value for sigma in self.sigmas))
        network = functools.partial(self.within, train=True)
        return call_changed("NoisyConvolutions", network, x, nn.Conv, noise)


def _noise(keys: Key, first: Any, inner: Any) -> Change:
    """Noise before a layer: of ``first`` before the one called first, ``inner`` before others."""
    calls = 0

    def noisy(call: Callable[[Array], Array], x: Array) -> Array:
        nonlocal calls
        sigma = jnp.asarray(inner if calls else first, x.dtype)
        drawn = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))
        calls += 1
        return call(x + sigma * drawn(fold_in_each(keys, calls)))

    return noisy
