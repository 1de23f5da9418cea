"""Virtual adversarial training: smooth answers where there are no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import fold_in_each
from advjax.arguments import check_count, check_number
from advjax.losses import cross_entropy, kl_divergence
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace, static
from advjax.shapes import over_features
from advjax.training.objectives._shared import accuracy
from advjax.types import NOISE, Aux, Net, Objective

_UNLABELLED = 4  # the tag of the draws of a place's unlabelled images
_STATISTICS = ("labelled", "unlabelled")


def _unit(d: Array) -> Array:
    """Each example's vector at length one; zero stays zero.

    Divided by the largest entry first, with the authors' 1e-12 and 1e-6 against dividing by zero:
    the squares of a gradient of size 1e-8 do not fit float32's range.
    """
    axes = over_features(d)
    d = d / (1e-12 + jnp.max(jnp.abs(d), axis=axes, keepdims=True))
    return d / jnp.sqrt(1e-6 + jnp.sum(d**2, axis=axes, keepdims=True))


def virtual_direction(key: Key, model: Any, x: Array, xi: ArrayLike, iterations: int) -> Array:
    """Where the answer changes most around x, at length one, ``[B, ...]``.

    Power iteration on the Hessian of ``KL(p(x) || p(x + r))`` at r = 0, by its gradient at
    ``xi d`` (Miyato et al. 2018, section 3.3).

    Args:
      key: ``[B]`` keys, of the first directions.
      model: ``model(x) -> logits [B, K]``.
      x: ``[B, ...]``.
      xi: how far from x the gradient is taken. Published is 1e-6, at which the answers of a deep
        network differ by little more than float32's rounding: of a perceptron 784-300-300-10 the
        median cosine to the direction at 1e-2 was .26 to .67, and .99999 at 1e-3. In bfloat16 1e-6
        leaves nothing.
      iterations: K; none is the first, random, direction.
    """
    clean = jax.lax.stop_gradient(model(x))
    distance = lambda r: jnp.sum(kl_divergence(clean, model(x + r)))
    d = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)
    for _ in range(iterations):
        d = jax.grad(distance)(xi * _unit(d))
    return jax.lax.stop_gradient(_unit(d))


@pytree
class VAT(Objective):
    """Virtual adversarial training (Miyato et al. 2018, equations 5 to 8).

    ``cross_entropy(x) + weight KL(p(u) || p(u + eps d))`` on unlabelled images u, along the
    direction d in which the answer changes most; no gradient flows through ``p(u)``. The passes of
    the unlabelled images are in training mode, an image under one dropout mask in all of them. As
    published they leave the running statistics of BatchNorm alone, which are then those of a few
    labelled images; the authors compute them anew, over all unlabelled images, before they
    evaluate. ``statistics="unlabelled"`` comes nearest to that.

    The batch's ``unlabelled`` ``[b k, ...]`` are k images for each labelled one; without them the
    labelled images are used. Let the unlabelled stream contain the labelled images.

    Published: eps 10 on CIFAR-10 (8 with augmentation), 2.5 on SVHN (3.5), on MNIST .3 with few
    labels and 2.1 with all.

    Metrics: ``clean_accuracy``, ``virtual_loss``, the mean divergence, and with an entropy weight
    ``entropy``, the mean of the unlabelled answers'.

    Attributes:
      eps: Euclidean length of the perturbation, in pixel units, at least 0.
      weight: of the divergence, at least 0.
      entropy: weight of the unlabelled answers' entropy (Grandvalet & Bengio 2004); 1 is
        "VAT+EntMin". None for none.
      xi: where the direction's gradient is taken, in pixel units; published is 1e-6, which float32
        does not bear: see ``virtual_direction``.
      iterations: of the power method.
      statistics: whose pass the running statistics of BatchNorm follow: ``"labelled"`` that of the
        labelled images, ``"unlabelled"`` the clean one of the unlabelled images.
    """

    eps: ArrayLike = 10.0
    weight: ArrayLike = 1.0
    entropy: ArrayLike | None = None
    xi: ArrayLike = 1e-3
    iterations: int = static(default=1)
    statistics: str = static(default="labelled")

    def check(self) -> None:
        for name in ("eps", "weight"):
            check_number("VAT", name, getattr(self, name), zero=True)
        check_number("VAT", "xi", self.xi)
        check_count("VAT", "iterations", self.iterations, 0)
        if self.entropy is not None:
            check_number("VAT", "entropy", self.entropy, zero=True)
        if self.statistics not in _STATISTICS:
            known = " or ".join(map(repr, _STATISTICS))
            raise ValueError(f"VAT: given statistics={self.statistics!r}; expected {known}")

    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        u = batch.get("unlabelled", batch["x"])
        net = replace(_unlabelled(net, u), params=jax.lax.stop_gradient(net.params))
        keys, model = fold_in_each(net.key, NOISE), lambda x: net(x)[0]
        d = virtual_direction(keys, model, u, self.xi, self.iterations)
        return {**batch, "x_adv": u + self.eps * d}

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        x, y, u = batch["x"], batch["y"], batch.get("unlabelled", batch["x"])
        theirs = _unlabelled(net, u)
        # The same pass as in crafting; compiled together they are one.
        clean, of_unlabelled = theirs(u)
        robust, _ = theirs(batch["x_adv"])
        logits, of_labelled = net(x)
        virtual = jnp.mean(kl_divergence(jax.lax.stop_gradient(clean), robust))
        loss = jnp.mean(cross_entropy(logits, y)) + self.weight * virtual
        metrics = {"clean_accuracy": accuracy(logits, y), "virtual_loss": virtual}
        if self.entropy is not None:
            log_p = jax.nn.log_softmax(clean.astype(jnp.float32))
            entropy = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=-1))
            loss += self.entropy * entropy
            metrics["entropy"] = entropy
        stats = of_labelled if self.statistics == "labelled" else of_unlabelled
        return loss, Aux(stats=stats, metrics=metrics)


def _unlabelled(net: Net, u: Array) -> Net:
    """The net with a key for each unlabelled image, from the key of its place in the batch."""
    each = jnp.arange(u.shape[0] // net.key.shape[0])
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return replace(net, key=fold(fold_in_each(net.key, _UNLABELLED), each).reshape(-1))
