"""Iterative retraining: train, attack, add what evades with its true label, train again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from advjax.attacks import Attack
from advjax.data import Dataset, to_float
from advjax.evaluation import Accuracy, evaluate
from advjax.files import whole_file
from advjax.runs.outcome import Event, Progress, Snapshot
from advjax.spec import describe
from advjax.training.apply import Bound
from advjax.training.loop import fit
from advjax.training.spec import Training, root_keys


@dataclasses.dataclass(frozen=True)
class Round:
    """One training of ``retrain`` and the attack on what it gave.

    Attributes:
      snapshot: its model, with the metrics of the run's own evaluation.
      examples: how many images it was trained on.
      clean: the accuracy on the malicious images as they are.
      evasion: the share of them that the model gets wrong, as they are or attacked: the
        attack's success before the next training.
      new: of the attacked images that are wrong, how many no earlier round had found. They are what
        the next round adds; the last round's are added to nothing.
      changed: the share of the predictions on the held-out images that differ from those of the
        round before; None in the first round and without held-out images.
    """

    snapshot: Snapshot
    examples: int
    clean: Accuracy
    evasion: Accuracy
    new: int
    changed: float | None


@dataclasses.dataclass(frozen=True)
class Retrained:
    """What ``retrain`` gives.

    Attributes:
      rounds: all of them, the first being the training without additions.
      stopped: the rule that ended it: ``"no new instances"``, ``"little change"`` or
        ``"round limit"``; the first of them where several hold.
      train: the training set of the last round.
    """

    rounds: Sequence[Round]
    stopped: str
    train: Dataset

    @property
    def model(self) -> Any:
        """The last round's model."""
        return self.rounds[-1].snapshot.model


def retrain(
    training: Training,
    attack: Attack,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    rounds: int = 10,
    malicious: Any = None,
    new: float = 0.0,
    change: float | None = None,
    held_out: Dataset | None = None,
    warm: bool = False,
    config: Any = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
) -> Retrained:
    """Iterative retraining (Li, Vorobeychik, Chen 2016, arXiv 1604.02606).

    Trains, attacks the malicious images of the original training set, adds every new image that
    evades with the label of its original, and trains again, until the attack finds no new
    instances, the classifier changes little, or ``rounds`` trainings were made. It defends against
    this attack; measure others too.

    Every round is a whole ``fit`` with the same seed, so ``training.steps`` make rounds of equal
    length and ``training.epochs`` make them grow with the set. The attack draws anew in each round.
    With validation images a round gives its best model, otherwise its last.

    Attacked images are floats, and the set with them is too: nothing is rounded. The images of
    ``Lattice(attack)`` lie on the levels of uint8, so with it a set of bytes stays one, exactly and
    in a quarter of the memory.

    Args:
      training: the first round; ``neighbours`` are not taken, since added images have none.
      attack: any attack that ``evaluate`` takes.
      run_dir: a folder for the rounds, ``round-00`` and so on (run folders of ``fit``) and what
        their attacks found. The same call on the same folder goes on where the last one was killed,
        to the same result; the stopping rules may differ. None keeps everything in memory.
      rounds: the most trainings, the first one included.
      malicious: which images of ``training.train`` are attacked: positions or a mask, such as
        ``np.isin(train.y, [3, 5])`` for two classes; None for all.
      new: the attack found no new instances when they are at most this share of the malicious.
      change: the classifier changes little when at most this share of its predictions on the
        held-out images differs from the round before; None to leave this rule out. Predictions, not
        parameters: those of two trainings from scratch have nothing to do with each other.
      held_out: for that, images that are neither trained nor tested on; ``training.validation``
        when None.
      warm: each round goes on from the parameters of the last, with a new optimiser state, instead
        of from those of the first.
      config: as for ``fit``.
      devices: all local devices by default.
      progress: called with the events of each ``fit``, and a note before and after each attack.

    Raises:
      ValueError: for numbers outside their ranges, and malicious images that are not in the set.
      RunError: if the folder holds another retraining.
    """
    chosen = _chosen(malicious, len(training.train))
    held: Any = training.validation if held_out is None else held_out
    _check(training, attack, rounds, new, change, held)
    originals = training.train.take(chosen)
    told = {
        "attack": describe(attack),
        "malicious": describe(chosen),
        "warm": warm,
    }
    this, before, seen = training, None, set[bytes]()
    done: list[Round] = []
    while True:
        name = f"round-{len(done):02}"
        folder = None if run_dir is None else Path(run_dir) / name
        settings = {"retraining": told, "settings": config}
        result = fit(this, folder, config=settings, devices=devices, progress=progress)
        snapshot = result.last if training.validation is None else result.best

        tell = functools.partial(_tell, progress, f"{name}: ", snapshot.step, this.total_steps)
        tell(f"attacking {len(originals)} images")
        key = jax.random.fold_in(root_keys(training.seed)[2], np.uint32(len(done)))
        kept = None if folder is None else folder.with_suffix(".npz")
        found = _attacked(snapshot.model, originals, attack, key, devices, kept)
        digests = [hashlib.sha256(image.tobytes()).digest() for image in found["x"]]
        fresh = np.array([digest not in seen for digest in digests], bool)
        seen.update(digests)
        now = None if held is None else _predictions(snapshot.model, held, key, devices)
        n, wrong = len(originals), int(found["wrong_clean"])
        done.append(
            Round(
                snapshot=snapshot,
                examples=len(this.train),
                clean=Accuracy(n - wrong, n),
                evasion=Accuracy(wrong + len(digests), n),
                new=int(fresh.sum()),
                changed=None if now is None or before is None else float(np.mean(now != before)),
            )
        )
        before, last = now, done[-1]
        tell(f"{100 * last.evasion.value:.1f} % of them evade, {last.new} anew")
        stopped = _stopped(done, n, rounds, new, change)
        if stopped is not None:
            tell(f"the end: {stopped}")
            return Retrained(tuple(done), stopped, this.train)
        added = dataclasses.replace(originals.take(found["at"][fresh]), x=found["x"][fresh])
        this = dataclasses.replace(this, train=_joined(this.train, added))
        if warm:
            params, stats = _variables(snapshot.model)
            this = dataclasses.replace(this, params=params, stats=stats)


def _tell(progress: Progress | None, name: str, step: int, steps: int, text: str) -> None:
    if progress is not None:
        progress(Event("note", step, steps, text=name + text))


def _attacked(
    model: Any, data: Dataset, attack: Attack, key: Any, devices: Any, path: Path | None
) -> dict[str, np.ndarray]:
    """``at``, the positions of the images that the attack fooled, and ``x``, what it made of them;
    ``wrong_clean``, how many needed none. Read from the path, or written there."""
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    evaluation = evaluate(
        model,
        data,
        {"attack": attack},
        key=key,
        batch_size=min(256, len(data)),
        keep_images=True,
        devices=devices,
    )
    result = evaluation.attacks["attack"]
    assert result.x_adv is not None
    at = np.flatnonzero(result.success)
    found = {
        "at": at,
        "x": np.clip(result.x_adv[at], 0, 1),  # rounding may leave the box by 1e-5
        "wrong_clean": np.asarray((~evaluation.correct).sum()),
    }
    if path is not None:
        with whole_file(path) as file:
            np.savez(file, **found)
    return found


def _predictions(model: Any, data: Dataset, key: Any, devices: Any) -> np.ndarray:
    return evaluate(
        model, data, {}, key=key, batch_size=min(256, len(data)), devices=devices
    ).prediction


def _stopped(
    done: list[Round], n: int, rounds: int, new: float, change: float | None
) -> str | None:
    """The first stopping rule that holds after the last round."""
    last = done[-1]
    if last.new <= new * n:
        return "no new instances"
    if change is not None and last.changed is not None and last.changed <= change:
        return "little change"
    return "round limit" if len(done) == rounds else None


def _joined(data: Dataset, added: Dataset) -> Dataset:
    """Both sets. ``Dataset`` turns floats back to uint8 only where that loses nothing."""
    if data.x.dtype != added.x.dtype:
        x = np.concatenate([np.asarray(to_float(each.x)) for each in (data, added)])
    else:
        x = np.concatenate([data.x, added.x])
    assert data.ids is not None and added.ids is not None
    return dataclasses.replace(
        data,
        x=x,
        y=np.concatenate([data.y, added.y]),
        ids=np.concatenate([data.ids, added.ids]),
    )


def _variables(model: Any) -> tuple[Any, Any]:
    """The ``(params, stats)`` of a model that ``fit`` gave."""
    if isinstance(model, Bound):
        return model.params, model.stats
    stats = dict(model.variables)
    return stats.pop("params", {}), stats


def _chosen(malicious: Any, n: int) -> np.ndarray:
    """The positions of the malicious images, ascending."""
    given = np.arange(n) if malicious is None else np.asarray(malicious)
    if given.dtype == bool and given.shape == (n,):
        given = np.flatnonzero(given)
    fits = given.ndim == 1 and given.dtype.kind in "iu" and given.size
    if not fits or given.min() < 0 or given.max() >= n:
        raise ValueError(
            f"retrain: given malicious={given.dtype}{list(given.shape)}; expected at least one "
            f"position, from 0 to {n - 1}, or a mask [{n}] of the training images"
        )
    return np.unique(given)


def _check(
    training: Training, attack: Any, rounds: Any, new: Any, change: Any, held: Dataset | None
) -> None:
    if not isinstance(attack, Attack):
        given = type(attack).__name__
        raise TypeError(f"retrain: given attack={given}; expected an advjax attack")
    if training.neighbours is not None:
        raise ValueError("retrain: given neighbours; expected none, as added images have none")
    if type(rounds) is not int or rounds < 1:
        raise ValueError(f"retrain: given rounds={rounds!r}; expected a whole number >= 1")
    for name, share in (("new", new), ("change", change)):
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"retrain: given {name}={share!r}; expected a share from 0 to 1")
    if change is not None and held is None:
        raise ValueError(
            f"retrain: given change={change} without held-out images; "
            "expected held_out or Training.validation too"
        )
