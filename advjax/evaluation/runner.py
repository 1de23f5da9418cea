"""Runs models and attacks over a data set in batches of few fixed sizes, spread over devices."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from advjax.answers import as_model, example_keys, fold_in_each, is_stochastic, runs_on_host
from advjax.balls import Ball
from advjax.checks import check_images, check_labels, classes_of
from advjax.data import Dataset, to_float
from advjax.evaluation.draws import DRAWS, draws_that_reach
from advjax.evaluation.result import AttackResult
from advjax.evaluation.tally import Tally
from advjax.goals import Misclassify
from advjax.pytrees import replace
from advjax.shapes import over_features
from advjax.types import Attack

Progress = Callable[[str, int, int], None]

_IN_FLIGHT = 2  # batches that the devices may be ahead of the host
_TOLERANCE = 1e-5  # how far outside its box rounding may leave a pixel, as in advjax.checks
_SLACK = 1e-4  # how much longer than eps rounding may make a perturbation, relative


def attack_key(key: jax.Array, name: str) -> jax.Array:
    """The key of a named attack in an evaluation; example i draws from ``fold_in`` of it and id."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def predict(
    model: Any, x: jax.Array, keys: jax.Array, draws: int = 1
) -> tuple[jax.Array, jax.Array]:
    """A model's answer to images ``[B, ...]``; traceable.

    Args:
      model: a callable pytree.
      x: float images.
      keys: ``[B]`` keys, used if the model is stochastic.
      draws: a stochastic model's prediction is the majority of so many draws.

    Returns:
      The classes ``[B]`` int32, -1 where the logits are not finite, and their softmax ``[B]``.
    """
    if is_stochastic(model):
        draw = lambda d: model(x, key=fold_in_each(keys, d))
        logits = jax.lax.map(draw, jnp.arange(draws))
    else:
        logits = model(x)[None]
    logits = logits.astype(jnp.float32)
    votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    best = jnp.argmax(jnp.sum(votes, axis=0), axis=-1)
    shares = jnp.mean(jax.nn.softmax(logits), axis=0)
    confidence = jnp.take_along_axis(shares, best[:, None], axis=-1)[:, 0]
    finite = jnp.all(jnp.isfinite(logits), axis=(0, 2))
    return jnp.where(finite, best, -1).astype(jnp.int32), confidence


# Module-level, so that all evaluations share one cache of compiled programs.
_predict = jax.jit(predict, static_argnums=3)
_draws_that_reach = jax.jit(draws_that_reach, static_argnums=5)
_fold = jax.jit(fold_in_each)


@jax.jit
def _prepare(x: Any, ids: jax.Array, roots: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return to_float(x), *(example_keys(root, ids) for root in roots)


@jax.jit
def feasible(ball: Ball | None, x: jax.Array, x_adv: jax.Array) -> jax.Array:
    """``[B]`` bool: every pixel is a number inside [0, 1], and the change is inside the ball."""
    inside = (x_adv >= -_TOLERANCE) & (x_adv <= 1 + _TOLERANCE)  # NaN fails both
    valid = jnp.all(inside, axis=over_features(x))
    if ball is None:
        return valid
    return valid & (ball.size(x_adv - x) <= ball.eps * (1 + _SLACK) + _TOLERANCE)


@dataclasses.dataclass(frozen=True, eq=False)
class Runner:
    """A checked model and data set, ready to be run over.

    Attributes:
      model: on all devices.
      x: ``[N, ...]`` uint8 or float images, on the host.
      y: ``[N]`` int32 labels.
      ids: ``[N]`` int32, what the random draws follow.
      low: smallest pixel per channel, in [0, 1].
      high: largest pixel per channel.
      key: the evaluation's key.
      sizes: the batch sizes that are compiled, ascending; multiples of the device count.
      sharding: how a batch lies on the devices.
      draws: of a stochastic model, per prediction and counted on each attacked image; 1 of
        another.
      progress: told ``(stage, done, total)``.
    """

    model: Any
    x: np.ndarray
    y: np.ndarray
    ids: np.ndarray
    low: np.ndarray
    high: np.ndarray
    key: jax.Array
    sizes: tuple[int, ...]
    sharding: NamedSharding
    draws: int
    progress: Progress | None

    @classmethod
    def start(
        cls,
        model: Any,
        data: Any,
        key: jax.Array,
        batch_size: int,
        draws: int = DRAWS,
        progress: Progress | None = None,
        devices: Sequence[Any] | None = None,
    ) -> Runner:
        """Checks everything that can be checked before compiling; errors as for ``evaluate``."""
        model = as_model(model)
        x, y, ids = _arrays(data)
        n = len(x)
        if not isinstance(key, jax.Array) or key.ndim or not _is_key(key):
            raise TypeError("key: expected one jax.random.key(seed)")
        for what, number in (("batch_size", batch_size), ("draws", draws)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{what}: given {number!r}; expected an integer >= 1")
        over = tuple(range(x.ndim - 1))
        unit = 255 if x.dtype == np.uint8 else 1
        low, high = x.min(axis=over) / unit, x.max(axis=over) / unit
        if not (np.all(low >= -_TOLERANCE) and np.all(high <= 1 + _TOLERANCE)):
            raise ValueError(
                f"images: given values from {low.min():.6g} to {high.max():.6g}; expected 0 to 1"
            )
        classes = classes_of(model, check_images(np.asarray(to_float(x[:1]))))
        y = np.asarray(check_labels(y, n))
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(
                f"labels: given {y.min()} to {y.max()}; expected 0 to {classes - 1}, the model's "
                "classes"
            )
        size = min(batch_size, n)
        spread = list(jax.local_devices() if devices is None else devices)[:size]
        if not spread:
            raise ValueError("devices: given none; expected at least one")
        if runs_on_host(model):  # a callback that several devices wait for never returns
            spread = spread[:1]
        up = lambda number: -(-number // len(spread)) * len(spread)
        mesh = Mesh(np.array(spread), ("batch",))
        everywhere = NamedSharding(mesh, PartitionSpec())
        return cls(
            model=jax.device_put(model, everywhere),
            x=x,
            y=y,
            ids=ids,
            low=low,
            high=high,
            key=jax.device_put(key, everywhere),
            # Quarter steps: at most three compilations, and at most four times too much work for
            # the few examples that the last stages of a strong attack leave.
            sizes=tuple(sorted({up(size), up(-(-size // 4)), up(-(-size // 16))})),
            sharding=NamedSharding(mesh, PartitionSpec("batch")),
            draws=draws if is_stochastic(model) else 1,
            progress=progress,
        )

    def predict(self) -> dict[str, np.ndarray]:
        """``prediction`` and ``confidence`` on the clean images, ``[N]`` each.

        Raises:
          ValueError: if logits are not finite.
        """
        n = len(self.y)
        out = {"prediction": np.zeros(n, np.int32), "confidence": np.zeros(n, np.float32)}
        roots = (attack_key(self.key, ""),)

        def launch(positions: np.ndarray) -> Any:
            x, keys, _ = self._place(positions, roots)
            return _predict(self.model, x, keys, self.draws)

        for positions, (prediction, confidence) in self._stream("clean", np.arange(n), launch):
            out["prediction"][positions] = prediction
            out["confidence"][positions] = confidence
        broken = int((out["prediction"] < 0).sum())
        if broken:
            raise ValueError(f"the model's logits are not finite on {broken} of {n} clean images")
        return out

    def attack(
        self, name: str, attack: Attack, standing: np.ndarray, keep: int, said: str | None = None
    ) -> AttackResult:
        """Attacks the examples where ``standing [N]``; keeps the first ``keep`` images.

        Args:
          name: what the attack's draws follow.
          attack: one that ``check_attack`` has passed.
          standing: ``[N]`` bool.
          keep: how many images to keep.
          said: what progress calls it; ``name`` when ``None``.
        """
        n, began = len(self.y), time.perf_counter()
        kinds = (name, f"judge {name}", f"count {name}")
        roots = tuple(attack_key(self.key, kind) for kind in kinds)
        stages = attack.stages()
        drawn = is_stochastic(self.model)
        kept = np.asarray(to_float(self.x[:keep])) if keep else None
        found = Tally(standing, kept, self.draws if drawn else None)
        for number, (tag, stage) in enumerate(stages):
            left = np.flatnonzero(standing & ~found.arrays["success"])
            if not len(left):
                break
            own = stage.varies(n, self.x.ndim)
            placed = None if own else jax.device_put(stage, self._everywhere)

            def launch(
                positions: np.ndarray, tag: Any = tag, stage: Any = stage, placed: Any = placed
            ) -> Any:
                x, keys, judge_keys, count_keys, y = self._place(positions, roots)
                if tag is not None:
                    keys = _fold(keys, np.uint32(tag))
                if placed is None:
                    placed = stage.take(positions, n, self.x.ndim)
                record = placed.solve(keys, self.model, x, y, record=True)
                answer = _predict(self.model, record.x_adv, judge_keys, self.draws)
                wrong = None
                if drawn:  # not by the draws that the images of the stages are chosen by
                    wrong = _draws_that_reach(
                        Misclassify(), self.model, record.x_adv, y, count_keys, self.draws
                    )
                kept = record.x_adv if (positions < keep).any() else None
                valid = feasible(placed.ball, x, record.x_adv)
                return answer, valid, wrong, replace(record, x_adv=kept)

            # Losses of unequal attacks cannot be compared: an unfooled example keeps the first's.
            comparable = _structure(stage) == _structure(stages[0][1])
            what = said or name
            if len(stages) > 1:
                what = f"{what} {number + 1}/{len(stages)}"
            for positions, outcome in self._stream(what, left, launch):
                found.add(number, comparable, positions, self.y[positions], outcome)
        return found.result(time.perf_counter() - began)

    @property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self.sharding.mesh, PartitionSpec())

    def check_attack(self, name: str, attack: Any) -> None:
        """Raises where the attack cannot be run on this data set."""
        if not isinstance(attack, Attack):
            raise TypeError(f"{name}: given {type(attack).__name__}; expected an advjax attack")
        if len(self.sharding.mesh.devices.flat) > 1 and runs_on_host(attack):
            raise ValueError(
                f"{name}: holds a model that runs on the host, which several devices cannot share; "
                "expected devices=jax.local_devices()[:1]"
            )
        if attack.goal.targeted:
            raise ValueError(
                f"{name}: a targeted attack would aim at the true labels; "
                "Targeted(attack=..., choose=random_target) picks others"
            )
        lower, upper = map(np.asarray, attack.bounds)
        if np.any(self.low < lower - _TOLERANCE) or np.any(self.high > upper + _TOLERANCE):
            raise ValueError(
                f"{name}: images run from {self.low.min():.6g} to {self.high.max():.6g}; "
                f"the attack's box is {lower.tolist()} to {upper.tolist()}"
            )
        shape: Any = jax.ShapeDtypeStruct(self.x.shape, jnp.float32)
        attack.check_fits(shape)

    def _place(self, positions: np.ndarray, roots: tuple[jax.Array, ...]) -> tuple[Any, ...]:
        """Float images, keys per root and labels of a padded batch, on the devices."""
        batch = (self.x[positions], self.ids[positions], self.y[positions])
        x, ids, y = jax.device_put(batch, self.sharding)
        return *_prepare(x, ids, roots), y

    def _stream(
        self, stage: str, positions: np.ndarray, launch: Callable[[np.ndarray], Any]
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """What ``launch`` returns for all positions, on the host and without the padding.

        The devices work on the next batches while the host takes the last one's results.
        """
        done, waiting = 0, deque[tuple[np.ndarray, Any]]()
        batches = self._batches(positions)
        more = True
        while more or waiting:
            while more and len(waiting) <= _IN_FLIGHT:
                following = next(batches, None)
                more = following is not None
                if following is not None:
                    padded, count = following
                    waiting.append((padded[:count], launch(padded)))
            if waiting:
                part, out = waiting.popleft()
                count = len(part)
                yield part, jax.tree.map(lambda a, c=count: a[:c], jax.device_get(out))
                done += count
                if self.progress is not None:
                    self.progress(stage, done, len(positions))

    def _batches(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Positions in batches of the fixed sizes, padded by repeats, and how many are real."""
        for start in range(0, len(positions), self.sizes[-1]):
            part = positions[start : start + self.sizes[-1]]
            size = next(size for size in self.sizes if size >= len(part))
            yield np.concatenate([part, np.repeat(part[:1], size - len(part))]), len(part)


def _arrays(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and ids of a ``Dataset`` or an ``(x, y)`` pair, of checked rank and dtype."""
    if isinstance(data, Dataset):
        x, y, ids = data.x, data.y, np.asarray(data.ids)
    elif isinstance(data, tuple | list) and len(data) == 2:
        x, y = np.asarray(data[0]), np.asarray(data[1])
        ids = np.arange(len(x), dtype=np.int32) if x.ndim else np.zeros(0, np.int32)
    else:
        raise TypeError(f"data: given {type(data).__name__}; expected a Dataset or (x, y)")
    if x.dtype != np.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"images: given {x.dtype}; expected uint8, or floats in [0, 1]")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"images: given shape {x.shape}; expected [N, ...] with N >= 1")
    return x, y, ids


def _is_key(key: jax.Array) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _structure(attack: Attack) -> Any:
    return jax.tree.structure(attack)
