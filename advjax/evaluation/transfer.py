"""Which model's adversarial images fool which other model: the transfer matrix."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import as_model, runs_on_host
from advjax.attacks import Attack
from advjax.attacks.transferred import quantised
from advjax.data import to_float
from advjax.evaluation.draws import DRAWS
from advjax.evaluation.runner import Progress, Runner, attack_key, feasible, predict
from advjax.evaluation.statistics import Accuracy
from advjax.report.heatmap import HeatMap, percent
from advjax.report.text import aligned
from advjax.spec import describe

_SHOWN = {
    "fooled": "Fooled, % of the images that the target gets right when clean",
    "errors": "Wrong, % of all images crafted on the source",
}


@dataclasses.dataclass(frozen=True, eq=False)
class TransferMatrix:
    """Answers of T targets to the images crafted on S sources, for N examples.

    Attributes:
      sources: S names, the rows.
      targets: T names, the columns.
      ids: ``[N]`` int32, the examples' ids in their data set.
      y: ``[N]`` int32 labels.
      clean: ``[T, N]`` int32, the targets' classes of the clean images.
      crafted: ``[S, T, N]`` int32, their classes of the images crafted on each source.
      level: confidence of the intervals.
      seconds: wall clock, compilation included.
      about: what was run and on what, strings and numbers; ``invalid`` counts, per source, images
        that were not finite or outside box or ball, in whose place the clean ones were judged, and
        those on which a target's answer is not finite, which counts as no error.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ids: np.ndarray
    y: np.ndarray
    clean: np.ndarray
    crafted: np.ndarray
    level: float
    seconds: float
    about: Mapping[str, Any]

    def accuracy(self, target: str) -> Accuracy:
        """A target's accuracy on the clean images."""
        right = self.clean[self._column(target)] == self.y
        return Accuracy(int(right.sum()), len(right), self.level)

    def fooled(self, source: str, target: str) -> Accuracy | None:
        """Of the images that the target gets right when clean, the share that fools it.

        ``None`` where the target gets none right.
        """
        row, column = self._row(source), self._column(target)
        right = self.clean[column] == self.y
        if not right.any():
            return None
        wrong = right & self._wrong(row, column)
        return Accuracy(int(wrong.sum()), int(right.sum()), self.level)

    def errors(self, source: str, target: str) -> Accuracy:
        """Of all images crafted on the source, the share that the target gets wrong.

        It contains what the target gets wrong without an attack; published matrices show it.
        """
        wrong = self._wrong(self._row(source), self._column(target))
        return Accuracy(int(wrong.sum()), len(wrong), self.level)

    def shares(self, show: str = "fooled") -> np.ndarray:
        """``[S, T]`` shares of ``fooled`` or ``errors``; NaN where there is none."""
        _check_shown(show)
        cells = [[getattr(self, show)(s, t) for t in self.targets] for s in self.sources]
        return np.array([[np.nan if c is None else c.value for c in row] for row in cells])

    def table(self, show: str = "fooled") -> str:
        """The matrix in percent as aligned text, rows sources, columns targets.

        Args:
          show: ``"fooled"`` or ``"errors"``.
        """
        cells = [[percent(v) for v in row] for row in self.shares(show)]
        body = [("source \\ target", *self.targets)]
        body += [(name, *row) for name, row in zip(self.sources, cells, strict=True)]
        body += [("clean accuracy", *(percent(self.accuracy(t).value) for t in self.targets))]
        lines = aligned(body)
        rule = "-" * len(lines[0])
        said = f"{_SHOWN[show]}; {len(self.y)} images"
        return "\n".join([said, lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def to_dict(self) -> dict[str, Any]:
        """Counts, shares and intervals of every cell, fit for JSON."""
        told = lambda a: None if a is None else a.to_dict()
        pairs = [(s, t) for s in self.sources for t in self.targets]
        return {
            "sources": list(self.sources),
            "targets": list(self.targets),
            "examples": len(self.y),
            "clean": {t: self.accuracy(t).to_dict() for t in self.targets},
            "cells": [
                {
                    "source": s,
                    "target": t,
                    "fooled": told(self.fooled(s, t)),
                    "errors": self.errors(s, t).to_dict(),
                }
                for s, t in pairs
            ],
            "level": self.level,
            "seconds": self.seconds,
            "about": dict(self.about),
        }

    def heat_map(self, show: str = "fooled", title: str = "Transfer matrix") -> HeatMap:
        """The matrix as a picture; hovering over a cell tells its counts and interval."""
        _check_shown(show)
        hints = []
        for s in self.sources:
            cells = [(t, getattr(self, show)(s, t)) for t in self.targets]
            hints.append([f"{s} to {t}: " + _counts(cell) for t, cell in cells])
        clean = [f"{percent(self.accuracy(t).value)}" for t in self.targets]
        return HeatMap(
            title=title,
            rows=self.sources,
            columns=self.targets,
            values=100 * self.shares(show),
            hints=hints,
            row_label="crafted on",
            column_label="judged by",
            footer=("clean accuracy, %", clean),
            note=f"{_SHOWN[show]}; {len(self.y)} images.",
        )

    def _wrong(self, row: int, column: int) -> np.ndarray:
        """``[N]`` bool; an answer that is not finite is no error."""
        crafted = self.crafted[row, column]
        return (crafted != self.y) & (crafted >= 0)

    def _row(self, name: str) -> int:
        return _position("source", self.sources, name)

    def _column(self, name: str) -> int:
        return _position("target", self.targets, name)


def transfer_matrix(
    models: Mapping[str, Any],
    attack: Attack | None,
    data: Any,
    *,
    key: jax.Array,
    sources: Iterable[str] | Mapping[str, Any] | None = None,
    levels: int | None = 256,
    batch_size: int = 256,
    draws: int = DRAWS,
    level: float = 0.95,
    progress: Progress | None = None,
    devices: Sequence[Any] | None = None,
) -> TransferMatrix:
    """Crafts on every source, on all examples, and asks every target about the same images.

    Models trained on other data go in under names of their own ("cnn A", "cnn B"): cross-model and
    cross-training-set transfer are two axes of one matrix. A source that is a target too makes
    the white-box cell; models that differ only in their seed make optimistic ones.

    Args:
      models: name to target, ``model(x) -> logits [B, K]``, ``External`` ones too.
      attack: what crafts on each source; None where every source brings its own.
      data: a ``Dataset``, or ``(x, y)``, as for ``evaluate``.
      key: one ``jax.random.key``; consumed. Example i draws for a source from its name and id.
      sources: names of models; or names to models, which need be no targets, to
        ``(model, attack)`` with an attack of its own, or to images ``[N, ...]`` that were crafted
        elsewhere. By default all models but ``External`` ones, which have no gradient.
      levels: levels of a pixel of the images that the targets see, 256 as in files of bytes; None
        for the attack's own floats. Perturbations only shrink (``quantised``).
      batch_size: as for ``evaluate``, like ``draws``, ``level``, ``progress`` and ``devices``; by
        default the first device alone where a model runs on the host.

    Raises:
      TypeError: on wrong types or dtypes.
      ValueError: on unknown or no names, and otherwise as for ``evaluate``.
    """
    if not models:
        raise ValueError("models: given none; expected name to model")
    if not 0 < level < 1:
        raise ValueError(f"level: given {level}; expected a number between 0 and 1")
    if levels is not None and (not isinstance(levels, int) or levels < 2):
        raise ValueError(f"levels: given {levels!r}; expected None or an integer >= 2")
    began = time.perf_counter()
    named = {name: as_model(model) for name, model in models.items()}
    crafting = _sources(named, attack, sources)
    if devices is None and runs_on_host((named, crafting)):
        devices = jax.local_devices()[:1]
    runs = {
        name: Runner.start(model, data, key, batch_size, draws, None, devices)
        for name, model in named.items()
    }
    some = next(iter(runs.values()))
    started = {}
    for name, (source, own) in crafting.items():
        if isinstance(source, np.ndarray):
            if source.shape != some.x.shape:
                raise ValueError(
                    f"{name}: given images {source.shape}; expected {some.x.shape}, one per example"
                )
        else:
            started[name] = Runner.start(source, data, key, batch_size, draws, None, devices)
            started[name].check_attack(name, own)
    clean = np.stack([run.predict()["prediction"] for run in runs.values()])
    n, targets = len(some.y), {name: run.model for name, run in runs.items()}
    invalid = dict[str, int]()
    crafted = np.full((len(crafting), len(named), n), -1, np.int32)
    for row, (name, (source, own)) in enumerate(crafting.items()):
        run = dataclasses.replace(started.get(name, some), progress=progress)
        roots = (attack_key(key, name), attack_key(key, f"judge {name}"))

        def launch(positions: np.ndarray, run: Any = run, how: Any = (source, own, roots)) -> Any:
            source, own, roots = how
            x, keys, judge_keys, y = run._place(positions, roots)
            if own is None:
                x_adv = jax.device_put(np.asarray(to_float(source[positions])), run.sharding)
            else:
                x_adv = own.solve(keys, run.model, x, y, record=False).x_adv
            x_adv, valid = _shown(None if own is None else own.ball, x, x_adv, levels)
            return [_answer(m, x_adv, judge_keys, draws) for m in targets.values()], valid

        invalid[name] = 0
        for positions, (answers, valid) in run._stream(name, np.arange(n), launch):
            crafted[row][:, positions] = answers = np.stack(answers)
            invalid[name] += int((~valid | (answers < 0).any(axis=0)).sum())
    return TransferMatrix(
        sources=tuple(crafting),
        targets=tuple(named),
        ids=some.ids,
        y=some.y,
        clean=clean,
        crafted=crafted,
        level=level,
        seconds=time.perf_counter() - began,
        about={
            "data": getattr(data, "name", "arrays"),
            "split": getattr(data, "split", ""),
            "examples": n,
            "attacks": {name: describe(own) for name, (_, own) in crafting.items()},
            "levels": levels,
            "invalid": invalid,
            "jax": jax.__version__,
        },
    )


@functools.partial(jax.jit, static_argnums=3)
def _shown(ball: Any, x: jax.Array, x_adv: jax.Array, levels: int | None) -> Any:
    """What the targets see, and which images are valid; in the place of the others the clean one.

    An image that is not finite, or not in box and ball, would be misclassified for nothing.
    """
    valid = feasible(ball, x, x_adv)
    x_adv = jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - 1)), x_adv, x)
    return (x_adv if levels is None else quantised(x, x_adv, levels)), valid


_answer = jax.jit(lambda *given: predict(*given)[0], static_argnums=3)


def _sources(
    models: Mapping[str, Any], attack: Attack | None, sources: Any
) -> dict[str, tuple[Any, Attack | None]]:
    """Name to ``(model, attack)``, or to ``(images, None)``."""
    if sources is None:
        sources = [name for name, model in models.items() if not runs_on_host(model)]
    if isinstance(sources, str):
        raise TypeError(f"sources: given {sources!r}; expected a list of names or a mapping")
    if not isinstance(sources, Mapping):
        unknown = [name for name in sources if name not in models]
        if unknown:
            raise ValueError(f"sources: no model {unknown[0]!r}; there are {', '.join(models)}")
        sources = {name: models[name] for name in sources}
    if not sources:
        raise ValueError("sources: none is left that has a gradient; name them, with an attack")
    found: dict[str, tuple[Any, Attack | None]] = {}
    for name, source in sources.items():
        if isinstance(source, np.ndarray | jax.Array):
            found[name] = (np.asarray(source), None)
            continue
        model, own = source if isinstance(source, tuple) and len(source) == 2 else (source, attack)
        if not isinstance(own, Attack):
            raise TypeError(f"{name}: given attack={own!r}; expected an advjax attack")
        found[name] = (as_model(model), own)
    return found


def _counts(cell: Accuracy | None) -> str:
    if cell is None:
        return "nothing to fool"
    return (
        f"{cell.correct} of {cell.total}, {100 * cell.value:.1f} % "
        f"[{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
    )


def _check_shown(show: str) -> None:
    if show not in _SHOWN:
        raise ValueError(f"show: given {show!r}; expected one of {', '.join(_SHOWN)}")


def _position(what: str, names: Sequence[str], name: str) -> int:
    if name not in names:
        raise KeyError(f"no {what} {name!r}; there are {', '.join(names)}")
    return names.index(name)
