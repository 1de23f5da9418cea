"""Checkpoints with orbax: written aside and renamed, checked bit by bit when read.

A checkpoint ``checkpoints/STEP`` has two items: ``state``, the arrays by name, and ``position``, a
JSON record of where the run stood, the arrays' shapes and dtypes, and their checksum. Orbax
notices files that are missing or cut, not bytes that changed; the checksum does.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

FORMAT = 1
_KEEP_LATEST = 2  # so that there is a good one before a bad one


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names it and says why, in one line."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint of which something is missing, cut or changed."""


def _name(path: tuple[Any, ...]) -> str:
    parts = []
    for key in path:
        if isinstance(key, GetAttrKey):
            parts.append(key.name)
        elif isinstance(key, (DictKey, FlattenedIndexKey)):
            parts.append(str(key.key))
        elif isinstance(key, SequenceKey):
            parts.append(str(key.idx))
        else:
            parts.append(str(key))
    return "/".join(parts)


def _is_key(value: Any) -> bool:
    return jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def named(tree: Any) -> dict[str, Any]:
    """The tree's leaves by name, ``"params/Dense_0/kernel"``."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _words(leaf: Any) -> Any:
    """The leaf, or its words where it is a key."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def arrays_of(tree: Any) -> dict[str, np.ndarray]:
    """The tree's arrays by name, as copies on the host; keys become their words.

    Copies, because a view of a buffer that is donated later would change under the writer.
    """
    return {name: np.array(_words(leaf), copy=True) for name, leaf in named(tree).items()}


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, str]:
    """``{name: "float32[3,4]"}``."""
    return {n: f"{np.dtype(a.dtype).name}{list(a.shape)}" for n, a in sorted(arrays.items())}


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(arrays[name].tobytes(), total)
    return total


def compare_shapes(where: str, held: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises CheckpointError naming the first array that differs and how many do."""
    wrong = sorted(n for n in held.keys() | wanted.keys() if held.get(n) != wanted.get(n))
    if wrong:
        first = wrong[0]
        more = f" ({len(wrong)} arrays differ)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{where} is of another network or optimiser: {first} is given as "
            f"{held.get(first, 'nothing')}, expected {wanted.get(first, 'nothing')}{more}"
        )


def steps_in(folder: Path) -> list[int]:
    """The steps that have a finished checkpoint, ascending; unfinished ones have other names."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def read(folder: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays by name and the position of one checkpoint.

    Raises:
      DamagedCheckpointError: if any of it is missing, cut or changed.
      CheckpointError: if there is no such checkpoint.
    """
    import orbax.checkpoint as ocp

    path = (folder / str(step)).absolute()
    if not path.is_dir():
        held = ", ".join(map(str, steps_in(folder))) or "none"
        raise CheckpointError(f"no checkpoint {path}; there are: {held}")
    item = lambda name, args: ocp.args.Composite(**{name: args})
    try:
        handler = ocp.CompositeCheckpointHandler()
        with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:
            record = reader.restore(path, args=item("position", ocp.args.JsonRestore()))["position"]
            _check_record(record, step)
            target = {
                n: np.zeros(shape, _dtype(dtype)) for n, (dtype, shape) in record["arrays"].items()
            }
            stored = {n: a for n, a in target.items() if a.size}
            arrays = reader.restore(path, args=item("state", ocp.args.StandardRestore(stored)))
    except Exception as error:  # orbax, tensorstore and json each raise their own
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged or incomplete: {reason}"
        ) from error
    arrays = {n: np.asarray(a) for n, a in {**target, **arrays["state"]}.items()}
    if _checksum(arrays) != record["crc32"]:
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged: its bytes do not match its checksum"
        )
    return arrays, record


def _dtype(name: str) -> Any:
    return jnp.dtype(name)  # knows bfloat16


def _check_record(record: Any, step: int) -> None:
    kinds = {"format": int, "step": int, "crc32": int, "arrays": dict, "position": dict}
    for name, kind in kinds.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise ValueError(f"its position record has no {kind.__name__} {name!r}")
    if record["format"] != FORMAT:
        raise ValueError(f"its format is {record['format']}; expected {FORMAT}")
    if record["step"] != step:
        raise ValueError(f"it says that it is step {record['step']}")


def fill(where: str, template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The template's tree with the arrays in it.

    Raises:
      CheckpointError: if a name, shape or dtype differs (a dtype is never cast).
    """
    abstract = jax.eval_shape(lambda t: named(jax.tree.map(_words, t)), template)
    compare_shapes(where, shapes_of(arrays), shapes_of(abstract))

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        value = jnp.asarray(arrays[_name(path)])
        if _is_key(leaf):
            return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
        return value

    return jax.tree.map_with_path(one, template)


def _alone() -> Any:
    """Of several processes one writes and reads, without waiting for the others."""
    import orbax.checkpoint as ocp

    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})


class _LatestAndBest:
    """Orbax's preservation policy: what to keep is asked for after every save.

    Its own ``BestN`` keeps the latest of equals, and reads a metrics file that may be damaged.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._of = checkpoints

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        latest = {c.step for c in checkpoints[-_KEEP_LATEST:]}
        return [c.step in latest or c.step == self._of.best for c in checkpoints]


class Checkpoints:
    """The checkpoints of one run: the latest two and the best are kept.

    A context manager; leaving it waits for what is being written. Writing goes on in the
    background, on a copy.
    """

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp

        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.best: int | None = None
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self),
                cleanup_tmp_directories=True,
                create=False,
                multiprocessing_options=_alone(),
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, step: int, state: Any, position: Mapping[str, Any]) -> None:
        """Writes a checkpoint, or nothing when the step has one."""
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():
            return
        arrays = arrays_of(state)
        record = {
            "format": FORMAT,
            "step": step,
            "crc32": _checksum(arrays),
            "arrays": {n: [np.dtype(a.dtype).name, list(a.shape)] for n, a in arrays.items()},
            "position": dict(position),
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({n: a for n, a in arrays.items() if a.size}),
                position=ocp.args.JsonSave(record),
            ),
        )

    def wait(self) -> None:
        """Returns when everything is written."""
        self._manager.wait_until_finished()


def set_aside(folder: Path, step: int) -> Path:
    """Moves a damaged checkpoint to ``refused/STEP`` beside the folder; returns where to."""
    target = folder.parent / "refused" / str(step)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    (folder / str(step)).rename(target)
    return target
