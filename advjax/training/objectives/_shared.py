"""What objectives share: the pieces of a loss, its passes, and the search by an attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import fold_in_each
from advjax.attacks import PGD
from advjax.balls import concrete
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, Key, replace
from advjax.training.apply import Bound
from advjax.training.plain import as_objective
from advjax.types import ATTACK, NOISE, Aux, Net, Objective

_SECOND = 3  # the tag of a second pass, whose dropout is its own


def value_at(schedule: Callable[[Array], ArrayLike], step: Array) -> ArrayLike:
    """A schedule's value at a step; optax's mix counts and floats."""
    with jax.numpy_dtype_promotion("standard"):
        return schedule(step)


class Scheduled(Objective):
    """An objective that crafts by an ``attack``, whose budget ``eps_schedule`` scales. Abstract."""

    attack: Any
    eps_schedule: Any

    def at(self, step: Array) -> Any:
        """The objective of one step, the schedule evaluated."""
        if self.eps_schedule is None:
            return self
        attack = self.attack.scaled(value_at(self.eps_schedule, step))
        return replace(self, attack=attack, eps_schedule=None)  # type: ignore[type-var]

    def threat(self) -> Any:
        return self.attack.ball


class Around(Objective):
    """An objective around another one, whose schedule and crafting it has. Abstract.

    Attributes:
      objective: the other one; one that carries a state from step to step is refused.
    """

    objective: Any

    @property
    def inner(self) -> Any:
        """The other one, with every hook of an ``Objective``."""
        return as_objective(self.objective)

    def check(self) -> None:
        if self.inner.carries:
            raise TypeError(
                f"{type(self).__name__}: given {type(self.objective).__name__}; "
                "expected an objective that carries no state from step to step"
            )

    def at(self, step: Array) -> Any:
        inner = self.inner
        now = inner.at(step)
        return self if now is inner else replace(self, objective=now)  # type: ignore[type-var]

    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        return self.inner.craft(net, batch)

    def threat(self) -> Any:
        return self.inner.threat()


def smoothed_cross_entropy(logits: Array, y: Array, smoothing: ArrayLike) -> Array:
    """Cross-entropy against ``(1 - s) one_hot(y) + s / K``, ``[B]`` (Szegedy et al. 2016)."""
    hard = cross_entropy(logits, y)
    logits = logits.astype(jnp.float32)
    uniform = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
    return hard + smoothing * (uniform - hard)


def accuracy(logits: Array, y: Array) -> Array:
    """The share of images classified right, a scalar."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == y, dtype=jnp.float32)


def accuracies(clean: Array, robust: Array, y: Array) -> dict[str, Array]:
    """The metrics ``clean_accuracy`` and ``robust_accuracy``."""
    return {"clean_accuracy": accuracy(clean, y), "robust_accuracy": accuracy(robust, y)}


def check_fraction(name: str, value: Any) -> None:
    """Raises ValueError unless the number, where it is known, lies in [0, 1]."""
    value = concrete(value)
    if value is not None and not ((value >= 0) & (value <= 1)).all():
        raise ValueError(f"{name}: given {value.tolist()}; expected numbers from 0 to 1")


def check_pgd(objective: str, attack: Any) -> None:
    """Raises unless the attack is an untargeted ``PGD``, whose start and loss can be chosen."""
    if not isinstance(attack, PGD) or attack.goal.targeted:
        raise TypeError(f"{objective}: given attack={attack!r}; expected an untargeted PGD")


def check_batch(objective: str, batch: Mapping[str, Array], *names: str) -> None:
    """Raises unless the batch has these."""
    if not batch.keys() >= set(names):
        raise ValueError(
            f"{objective}: given a batch of {', '.join(batch)}; expected {' and '.join(names)} too"
        )


def frozen(net: Net, key: Key | None = None) -> Bound:
    """The network as an attack sees it; no gradient flows to its parameters.

    In evaluation mode, or with the keys of dropout in training mode.
    """
    params = jax.lax.stop_gradient(net.params)
    train = key is not None
    return Bound(params=params, stats=net.stats, key=key, apply=net.apply, train=train)


def noise_like(key: Key, x: Array) -> Array:
    """``N(0, 1)`` of the shape of the images, each from its own key."""
    draw = lambda k: jax.random.normal(k, x.shape[1:], x.dtype)
    return jax.vmap(draw)(fold_in_each(key, NOISE))


def pgd_from_noise(key: Key, attack: PGD, model: Any, x: Array, y: Array, sigma: Any) -> Array:
    """The last iterate of the attack from ``x + sigma N(0, 1)``, whatever start it has itself."""
    attack = replace(attack, random_start=False, best=False)
    noise = noise_like(key, x)
    state = attack.init(fold_in_each(key, ATTACK), model, x, y, jnp.int32(attack.steps))
    state = replace(state, x_adv=x + sigma * noise)
    step = lambda i, state: attack.step(i, state, model, x, y)
    state = jax.lax.fori_loop(0, attack.steps, step, state)
    return jax.lax.stop_gradient(attack.ball.clip(attack.result(state, x)))


def batch_key(net: Net) -> Key:
    """One key for the whole batch, the first example's, on every device that has a part of it."""
    if net.axis is None:
        return net.key[0]
    first = jax.lax.all_gather(jax.random.key_data(net.key[0]), net.axis)[0]
    return jax.random.wrap_key_data(first, impl=jax.random.key_impl(net.key))


def attacked_loss(
    net: Net,
    batch: Mapping[str, Array],
    clean_weight: ArrayLike | None,
    label_smoothing: ArrayLike,
) -> tuple[Array, Aux]:
    """``alpha L(x) + (1 - alpha) L(x_adv)``, or ``L(x_adv)`` for None, with the accuracies."""
    x, x_adv, y = batch["x"], batch["x_adv"], batch["y"]
    mean = lambda logits: jnp.mean(smoothed_cross_entropy(logits, y, label_smoothing))
    if clean_weight is None:
        logits, stats = net(x_adv)
        return mean(logits), Aux(stats=stats, metrics={"robust_accuracy": accuracy(logits, y)})
    clean, robust, stats = paired_pass(net, x, x_adv)
    loss = clean_weight * mean(clean) + (1 - clean_weight) * mean(robust)
    return loss, Aux(stats=stats, metrics=accuracies(clean, robust, y))


def paired_pass(net: Net, x: Array, x_adv: Array) -> tuple[Array, Array, Any]:
    """Logits of both and new stats, from one pass of 2B images, so BatchNorm sees the mixture.

    The two alternate: an image's place in the batch is then the same however many devices share
    it, and so is its dropout.
    """
    both = jnp.stack([x, x_adv], axis=1).reshape(-1, *x.shape[1:])
    logits, stats = net(both)
    return logits[0::2], logits[1::2], stats


def both_passes(net: Net, x: Array, x_adv: Array, paired: bool) -> tuple[Array, Array, Any]:
    """Logits of clean and perturbed images and the new stats.

    As published a pass each, so that BatchNorm normalises either by its own statistics and the
    running ones take in first the clean, then the perturbed batch; ``paired`` is one pass of both.
    """
    if paired:
        return paired_pass(net, x, x_adv)
    clean, stats = net(x)
    robust, stats = replace(net, key=fold_in_each(net.key, _SECOND), stats=stats)(x_adv)
    return clean, robust, stats
