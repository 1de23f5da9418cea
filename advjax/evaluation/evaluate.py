"""Clean and robust accuracy of a model on a data set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from advjax.answers import as_model, example_keys, fold_in_each
from advjax.attacks import Attack
from advjax.checks import check_batch
from advjax.evaluation.draws import DRAWS
from advjax.evaluation.result import Evaluation
from advjax.evaluation.runner import Progress, Runner, predict
from advjax.spec import describe


def evaluate(
    model: Any,
    data: Any,
    attacks: Mapping[str, Attack] | Attack,
    *,
    key: jax.Array,
    batch_size: int = 256,
    cascade: bool = False,
    keep_images: int | bool = False,
    draws: int = DRAWS,
    level: float = 0.95,
    progress: Progress | None = None,
    devices: Sequence[Any] | None = None,
) -> Evaluation:
    """Measures clean accuracy and accuracy under each attack, on every example.

    Only images that the model gets right when clean are attacked; the others count as not robust.
    An attack made of stages (restarts, several attacks) drops what a stage has fooled before the
    next; what is left is packed into full batches, and the last one is padded to one of at most
    three sizes, so an attack is compiled at most three times. Success is judged by a fresh forward
    pass on the returned image, never by the attack itself.

    Example i draws from ``fold_in(attack_key(key, name), id_i)``: results do not depend on batch
    size, order, padding, device count or the other attacks, up to float rounding.

    Args:
      model: ``model(x) -> logits [B, K]``; see ``advjax.types.Model``.
      data: a ``Dataset``, or ``(x, y)``: uint8 or float [0, 1] images ``[N, ...]``, labels ``[N]``.
      attacks: name to attack, or one attack. Numbers per example (eps, step size ``[N]``, mask
        ``[N, ...]``) follow their examples. May be empty: clean accuracy alone.
      key: one ``jax.random.key``; consumed.
      batch_size: examples on all devices together.
      cascade: attack only what the earlier named attacks have left standing, as AutoAttack does;
        ``robust[name]`` is then the accuracy after it.
      keep_images: keep the adversarial images of the first so many examples; ``True`` for all.
      draws: a randomised model's prediction is the majority of so many draws. On the returned
        images as many further ones are counted: the mean share of them that is fooled, with an
        interval over images and draws, is in table and summary, each image's own is
        ``over_draws(name)``.
      level: confidence of the intervals.
      progress: called as ``progress(stage, done, total)`` with numbers of examples.
      devices: JAX devices to spread each batch over; all local ones by default.

    Raises:
      TypeError: on wrong types or dtypes.
      ValueError: on wrong shapes, ranges or labels, or logits that are not finite on clean images.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: given {level}; expected a number between 0 and 1")
    run = Runner.start(model, data, key, batch_size, draws, progress, devices)
    named = {type(attacks).__name__: attacks} if isinstance(attacks, Attack) else dict(attacks)
    for name, attack in named.items():
        run.check_attack(name, attack)  # all of them before the first one runs for an hour
    keep = len(run.y) if keep_images is True else min(int(keep_images), len(run.y))
    began = time.perf_counter()
    clean = run.predict()
    seconds = time.perf_counter() - began
    standing = clean["prediction"] == run.y
    results = {}
    for name, attack in named.items():
        results[name] = run.attack(name, attack, standing, keep)
        if cascade:
            standing = standing & ~results[name].success
    return Evaluation(
        ids=run.ids,
        y=run.y,
        **clean,
        attacks=results,
        cascade=cascade,
        level=level,
        seconds=seconds,
        about={
            "data": getattr(data, "name", "arrays"),
            "split": getattr(data, "split", ""),
            "examples": len(run.y),
            "attacks": {name: describe(attack) for name, attack in named.items()},
            "batch_size": batch_size,
            "draws": run.draws,
            "devices": run.sharding.num_devices,
            "platform": jax.default_backend(),
            "jax": jax.__version__,
        },
    )


def attack_accuracy(attack: Attack, key: jax.Array, model: Any, x: Any, y: Any) -> jax.Array:
    """The share of a batch that is right when clean and under attack: a traceable scalar.

    ``jax.vmap(attack_accuracy, in_axes=(0, None, None, None, None))`` over an attack whose eps is
    a grid gives the whole curve in one program. ``evaluate`` is for data sets: it drops what is
    fooled, keeps what happened per example, asks a randomised model more than once and gives
    intervals.

    Args:
      attack: any attack.
      key: one key, or ``[B]`` keys; consumed.
      model: ``model(x) -> logits [B, K]``.
      x: ``[B, ...]`` float images in [0, 1].
      y: ``[B]`` integer labels.
    """
    model = as_model(model)
    x, y = check_batch(model, x, y)
    keys = example_keys(key, x.shape[0])
    x_adv = attack(keys, model, x, y)
    # Folded with numbers that no attack uses, for a stochastic model's own draws.
    clean, _ = predict(model, x, fold_in_each(keys, 2**32 - 3))
    under_attack, _ = predict(model, x_adv, fold_in_each(keys, 2**32 - 2))
    return jnp.mean((clean == y) & (under_attack == y), dtype=jnp.float32)
