"""A run is one folder that explains itself.

``config.json`` says what was asked for, ``versions.json`` what it ran on, ``metrics.jsonl`` has one
line per step and per evaluation, ``events/`` the same for TensorBoard; then ``checkpoints/``,
``experiment.py``, the file it came from, and whatever a report adds.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from advjax.files import whole_file

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
_OURS = ("config.json", "versions.json", "metrics.jsonl", "events", "checkpoints", "refused",
         "experiment.py", "report.html")  # fmt: skip
_PACKAGES = ("advjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

Row = dict[str, Any]


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; one line that says why."""


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is either the old one or the whole new one."""
    text = json.dumps(value, indent=2) + "\n"
    with whole_file(path) as file:
        file.write(text.encode())


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """``config.json`` of a run: ``{"format", "training", "config"}``, where ``training`` is what
    the program described.

    Raises:
      RunError: if there is none or it is not one that a run wrote.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise RunError(f"{folder} is no run folder: it has no config.json")
    try:
        config = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    training = config.get("training") if isinstance(config, dict) else None
    if not isinstance(training, dict) or config.get("format") != FORMAT:
        raise RunError(f"{path} is not of a run; expected 'format' {FORMAT} and 'training'")
    return config


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """``["batch_size: the run has 64, given 128", ...]``."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in dict.fromkeys([*old, *new]):
            path = f"{at}.{name}" if at else str(name)
            found += differences(old.get(name), new.get(name), path)
        return found
    return [] if old == new else [f"{at}: the run has {_short(old)}, given {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def versions(devices: Iterable[Any]) -> dict[str, Any]:
    """What the run runs on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": found,
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in devices],
        "environment": {
            n: os.environ[n] for n in ("XLA_FLAGS", "GLIBC_TUNABLES") if n in os.environ
        },
    }


@contextlib.contextmanager
def lock(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the folder for this process; one that is killed lets go of it.

    Args:
      folder: made when missing.
      wait_s: seconds to wait for another one that holds it.

    Raises:
      RunError: if another process, or another run of this one, holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; expected a folder, or a name for a new one")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        until = time.monotonic() + wait_s
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= until:
                    raise RunError(f"{folder} is being trained by another process") from error
                time.sleep(0.2)
        yield


def open_run(
    folder: Path,
    training: Mapping[str, Any],
    config: Any,
    *,
    versions: Mapping[str, Any],
    source: Path | None,
    overwrite: bool,
    by_version: Sequence[str] = (),
) -> None:
    """Starts a run folder, or accepts the one of the same run.

    Args:
      folder: where; it exists.
      training: what the program describes.
      config: JSON-able settings it was built from.
      versions: what ``versions`` returned.
      source: the experiment file.
      overwrite: deletes the run that the folder holds.
      by_version: fields of ``training`` that are compared only where the packages are the same.

    Raises:
      RunError: if the folder holds another run (naming the fields that differ), or something else.
    """
    config = json.loads(json.dumps(config, default=str))
    fresh = {"format": FORMAT, "training": dict(training), "config": config}
    fresh = json.loads(json.dumps(fresh))
    was_run = (folder / "config.json").exists()
    if overwrite and was_run:
        _delete_run(folder, source)
    if was_run and not overwrite:
        old = read_config(folder)
        kept, found = old["training"], versions_of(folder)
        if kept.get("spec") != fresh["training"].get("spec"):
            raise RunError(
                f"{folder} was begun by another version of advjax, whose settings cannot be "
                "compared: finish it with that version, take another folder, or overwrite it"
            )
        if found.get("packages") != versions["packages"]:
            kept = {**kept, **{name: fresh["training"][name] for name in by_version}}
        wrong = differences(kept, fresh["training"])
        wrong += differences(old.get("config"), config, "config")
        if wrong:
            raise RunError(
                f"{folder} holds another run: {'; '.join(wrong)} "
                "(take another folder, or overwrite it)"
            )
        return
    foreign = sorted(
        p.name for p in folder.iterdir() if p.name not in _OURS and not p.name.startswith(".")
    )
    if foreign and not was_run:
        raise RunError(
            f"{folder} is no run folder and not empty: it holds {', '.join(foreign[:3])}"
        )
    write_json(folder / "versions.json", versions)
    if source is not None and not (folder / "experiment.py").exists():
        shutil.copyfile(source, folder / "experiment.py")
    write_json(folder / "config.json", fresh)  # last: with it, the folder is a run


def _delete_run(folder: Path, source: Path | None) -> None:
    """Deletes what a run writes, and only that; ``config.json`` last, so that it stays a run."""
    for name in reversed(_OURS):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists() and path.resolve() != (source and source.resolve()):
            path.unlink()


def versions_of(folder: Path) -> dict[str, Any]:
    """``versions.json``, or nothing where it cannot be read."""
    try:
        found = json.loads((folder / "versions.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_rows(folder: str | os.PathLike[str], *, up_to: int | None = None) -> list[Row]:
    """The rows of ``metrics.jsonl``, without a last line that was cut off.

    Args:
      folder: the run.
      up_to: leaves out the rows of later steps.
    """
    path = Path(folder) / "metrics.jsonl"
    rows: list[Row] = []
    if not path.exists():
        return rows
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not (
                line.endswith(b"\n") and isinstance(row, dict) and type(row.get("step")) is int
            ):
                break
            if up_to is None or row["step"] <= up_to:
                rows.append(row)
    return rows


class Metrics:
    """Appends rows to ``metrics.jsonl`` and to TensorBoard's events; a context manager.

    Args:
      folder: the run.
      rows: what the file is cut back to first, when a run is resumed.
      note: called with a line of text when there is something to say.
    """

    def __init__(self, folder: Path, rows: list[Row], note: Callable[[str], None]) -> None:
        path = folder / "metrics.jsonl"
        with whole_file(path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file = path.open("a")
        self._folder, self._note = folder / "events", note
        self._first = rows[-1]["step"] + 1 if rows else 1
        self._events: Any = None
        self._without_events = False

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def add(self, rows: list[Row]) -> None:
        """Appends rows and hands them to the operating system; a killed process loses none."""
        self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        self._file.flush()

    def add_events(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One point per value in TensorBoard, under ``kind/name``."""
        if self._events is None and not self._without_events:
            self._open_events()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def _open_events(self) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._without_events = True
            self._note("tensorboardX is not installed: metrics go to metrics.jsonl only")
        else:
            self._events = SummaryWriter(str(self._folder), purge_step=self._first)
