"""Objects as JSON and back: attacks, balls, objectives, defences, networks, configurations.

``to_json(PGD(ball=Linf(8 / 255), steps=40))`` is text that ``from_json`` makes the attack of again.
A spec holds a class by its import path and its fields: numbers with every bit, functions by their
import path, small arrays by value and large ones by checksum.

Reading one imports modules of ``TRUSTED`` packages and calls the constructors of their dataclasses
with the fields given, nothing else. Classes and functions of your own are read when you name their
package: ``from_json(text, trusted=("my_attacks",))``. A function is looked up, never called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import json
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = 1
TRUSTED = ("advjax", "flax.linen", "jax.nn", "optax")
_SMALL = 64  # numbers of an array that are written out


class SpecError(ValueError):
    """What cannot be written as a spec, or a spec that cannot be read; one line that says why."""


def to_json(value: Any, *, indent: int | None = None) -> str:
    """The object as text, for ``from_json``.

    Args:
      value: a ``pytree`` object, any other dataclass, or tuples, dicts and plain values of them;
        lists come back as tuples.
      indent: as of ``json.dumps``.

    Raises:
      SpecError: if it holds what has no import path (a lambda, a closure) or is traced.
    """
    return json.dumps(
        {"spec": FORMAT, "of": describe(value, strict=True)}, indent=indent, allow_nan=False
    )


def from_json(
    spec: str | Mapping[str, Any],
    *,
    values: Mapping[str, Any] | None = None,
    trusted: Iterable[str] = (),
) -> Any:
    """The object that ``to_json`` wrote.

    Args:
      spec: the text, or what JSON made of it; what ``describe`` returns of an object is one too.
      values: what a spec cannot hold, by its place (``"attack.source"``): arrays of which it has
        the checksum, which is compared, and objects that have no import path.
      trusted: packages beside ``TRUSTED`` whose classes and functions may be imported.

    Raises:
      SpecError: if it is no spec, of another format, or names what is not there or not trusted.
    """
    try:
        found = json.loads(spec) if isinstance(spec, str) else spec
    except ValueError as error:
        raise SpecError(f"no spec: expected what to_json wrote; {error}") from error
    if not isinstance(found, Mapping) or not {"spec", "is"} & set(found):
        raise SpecError(f"no spec: expected what to_json wrote, given {_short(found)}")
    if "spec" in found and (found["spec"] != FORMAT or "of" not in found):
        raise SpecError(
            f"a spec of format {found['spec']!r}; expected format {FORMAT}: read it with the "
            "version of advjax that wrote it, or make the object again and write that"
        )
    reader = _Reader(dict(values or {}), (*TRUSTED, *trusted))
    try:
        made = reader.read(found.get("of", found), "")
    except (KeyError, TypeError) as error:
        raise SpecError(f"a damaged spec: expected what to_json wrote; {error!r}") from error
    if reader.values:
        raise SpecError(f"values: the spec has no place {next(iter(reader.values))!r}")
    return made


def describe(value: Any, *, strict: bool = False) -> Any:
    """The object as nested JSON values, so that two can be compared field by field.

    Args:
      value: as ``to_json``.
      strict: whether what has no import path is an error. Without, its name or text is written, and
        ``from_json`` asks for it.
    """
    return _Writer(strict).write(value, "")


def readable(described: Any) -> Any:
    """What ``describe`` wrote, for people: every object in it as one line of text."""
    if not isinstance(described, Mapping):
        return [readable(v) for v in described] if isinstance(described, list) else described
    if "is" not in described:
        return {name: readable(v) for name, v in described.items()}
    kind = described["is"].rpartition(".")[2]
    parts: Mapping[str, Any] = {name: v for name, v in described.items() if name != "is"}
    if kind in ("Optimizer", "Schedule", "network"):  # known by the name that they were made by
        kind, parts = parts["name"], parts["fields" if kind == "network" else "arguments"]
    elif "value" in parts and "." not in described["is"]:
        return readable(parts["value"])
    fields = {name: readable(v) for name, v in parts.items()}
    return f"{kind}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def text_of(value: Any) -> str:
    """The name of a function, the text of anything else, without addresses in memory."""
    text = value.__qualname__ if hasattr(value, "__qualname__") else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(text.split()))


def checksum(tree: Any) -> str:
    """Of a tree's arrays and their places."""
    total = 0
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
    for path, leaf in sorted(leaves, key=lambda named: named[0]):
        array = np.asarray(leaf)
        about = f"{path} {array.dtype.name}{list(array.shape)}"
        total = zlib.crc32(array.tobytes(), zlib.crc32(about.encode(), total))
    return f"crc32:{total:08x}"


def path_of(thing: Any) -> str | None:
    """The import path of a class or function, the shortest that leads to it; None if none does."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return None
    parts = module.split(".")
    homes = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    for home in ("jax.nn", *homes) if parts[0] == "jax" else homes:
        found: Any = sys.modules.get(home)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is thing:
            return f"{home}.{name}"
    return None


@dataclasses.dataclass(frozen=True)
class _Writer:
    strict: bool

    def write(self, value: Any, at: str) -> Any:
        if isinstance(value, jax.core.Tracer):
            raise SpecError(f"{_place(at)} is traced; expected values, outside of jit and grad")
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"is": "float", "value": str(value)}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._object(value, at)
        if isinstance(value, (list, tuple)):
            return [self.write(v, _under(at, i)) for i, v in enumerate(value)]
        if isinstance(value, (np.ndarray, jax.Array)):
            return _written_array(value, at)
        if isinstance(value, Mapping):
            return self._mapping(value, at)
        if isinstance(value, Path):
            return {"is": "path", "value": str(value)}
        return self._named(value, at)

    def _object(self, value: Any, at: str) -> dict[str, Any]:
        cls = type(value)
        if _is_module(value):
            from advjax.models import describe as network_of

            with contextlib.suppress(ValueError):  # a network of your own is written by its fields
                return {"is": "network", **network_of(value)}
        path = path_of(cls)
        if path is None and self.strict:
            raise SpecError(f"{cls.__qualname__} has no import path; expected a module's class")
        is_tree = not jax.tree_util.all_leaves([value])
        fields = {}
        for field in _fields(value):
            part = getattr(value, field.name)
            if is_tree and not field.metadata.get("static") and _is_number(part):
                part = float(str(np.float32(part)))  # the shortest number with these bits
            fields[field.name] = self.write(part, _under(at, field.name))
        return {"is": path or f"{cls.__module__}.{cls.__qualname__}", **fields}

    def _mapping(self, value: Mapping[Any, Any], at: str) -> dict[str, Any]:
        leaves = jax.tree.leaves(value, is_leaf=dataclasses.is_dataclass)
        if leaves and all(isinstance(leaf, (np.ndarray, jax.Array)) for leaf in leaves):
            return {"is": "arrays", "value": checksum(value)}
        if any(not isinstance(name, str) or name == "is" for name in value):
            return {"is": "pairs", "value": self.write(tuple(value.items()), at)}
        return {name: self.write(v, _under(at, name)) for name, v in value.items()}

    def _named(self, value: Any, at: str) -> dict[str, Any]:
        if isinstance(value, np.dtype) or isinstance(getattr(value, "dtype", None), np.dtype):
            return {"is": "dtype", "value": jnp.dtype(value).name}
        path = path_of(value)
        if path is not None:
            return {"is": "function", "value": path}
        if self.strict:
            raise SpecError(
                f"{_place(at)} is {_short(value)}, which has no import path; expected a function "
                "of a module, a dataclass, or what schedule(...) or optimizer(...) makes"
            )
        return {"is": "foreign", "value": text_of(value)}


def _is_number(part: Any) -> bool:
    array = isinstance(part, (np.ndarray, np.generic, jax.Array))
    traced = isinstance(part, jax.core.Tracer)
    return array and not traced and not part.ndim and part.dtype == np.float32


def _written_array(value: Any, at: str) -> dict[str, Any]:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise SpecError(f"{_place(at)} is a key; expected settings, keys are given in the call")
    array = np.asarray(value)
    about = {"is": "array", "dtype": array.dtype.name, "shape": list(array.shape)}
    if array.size > _SMALL:
        return {**about, "value": checksum(array)}
    if not jnp.issubdtype(array.dtype, np.floating):
        return {**about, "value": array.ravel().tolist()}
    numbers = [float(str(v)) for v in array.ravel()]
    return {**about, "value": [v if math.isfinite(v) else str(v) for v in numbers]}


class _Reader:
    def __init__(self, values: dict[str, Any], trusted: tuple[str, ...]) -> None:
        self.values, self.trusted = values, trusted

    def read(self, spec: Any, at: str) -> Any:
        if at in self.values:
            return self._given(spec, at)
        if isinstance(spec, list):
            return tuple(self.read(v, _under(at, i)) for i, v in enumerate(spec))
        if not isinstance(spec, Mapping):
            return spec
        kind = spec.get("is")
        if kind is None:
            return {name: self.read(v, _under(at, name)) for name, v in spec.items()}
        if isinstance(kind, str) and "." in kind:
            return self._object(kind, spec, at)
        return self._value(kind, spec.get("value"), spec, at)

    def _value(self, kind: Any, value: Any, spec: Mapping[str, Any], at: str) -> Any:
        plain: dict[str, Callable[[Any], Any]] = {
            "float": float, "path": Path, "dtype": jnp.dtype, "function": self._imported
        }  # fmt: skip
        if kind in plain:
            return plain[kind](value)
        if kind == "network":
            from advjax.models import create

            return create(spec["name"], **spec["fields"])
        if kind == "pairs":
            return dict(self.read(value, at))
        if kind == "array" and isinstance(value, list):
            return _read_array(value, spec)
        if kind in ("array", "arrays", "foreign"):
            what = "was " + value if kind == "foreign" else f"is known by its checksum, {value}"
            raise SpecError(
                f"{_place(at)} {what}; expected its value: from_json(spec, values={{{at!r}: ...}})"
            )
        raise SpecError(
            f"{_place(at)} is {kind!r}, which is no import path: expected a spec of format "
            f"{FORMAT}; make the object again and write it with to_json"
        )

    def _given(self, spec: Any, at: str) -> Any:
        value = self.values.pop(at)
        known = spec.get("value") if isinstance(spec, Mapping) else None
        if isinstance(known, str) and spec.get("is") in ("array", "arrays"):
            found = checksum(np.asarray(value) if spec["is"] == "array" else value)
            if found != known:
                raise SpecError(f"values[{at!r}] has checksum {found}; expected {known}")
        return value

    def _object(self, path: str, spec: Mapping[str, Any], at: str) -> Any:
        cls = self._imported(path)
        if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
            raise SpecError(f"{path} is no dataclass; expected the class of {_place(at)}")
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        given = {name: value for name, value in spec.items() if name != "is"}
        for name in given:
            if name not in known:
                raise SpecError(f"unknown field {name!r} of {path}; {_known(name, known)}")
        fields = {name: self.read(value, _under(at, name)) for name, value in given.items()}
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{path}: {error}") from error

    def _imported(self, path: str) -> Any:
        """The class or function at an import path, of a trusted package and from there."""
        parts = path.split(".")
        package = next((p for p in self.trusted if f"{path}.".startswith(f"{p}.")), None)
        if package is None or any(part.startswith("__") for part in parts[1:]):
            raise SpecError(
                f"{path} is not of {', '.join(self.trusted)}; from_json(..., "
                f"trusted=({parts[0]!r},)) imports it, if you trust its author"
            )
        for n in range(len(parts) - 1, package.count("."), -1):
            home = ".".join(parts[:n])
            try:
                found: Any = importlib.import_module(home)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{home}.".startswith(f"{error.name}."):
                    raise
                continue
            for part in parts[n:]:
                if not hasattr(found, part):
                    names = [name for name in dir(found) if not name.startswith("_")]
                    raise SpecError(f"{home} has no {'.'.join(parts[n:])}; {_known(part, names)}")
                found = getattr(found, part)
            origin = str(getattr(found, "__module__", "")).split(".")[0]
            if isinstance(found, ModuleType) or origin != parts[0]:
                raise SpecError(f"{path} is not defined there; expected a class or function of it")
            return found
        raise SpecError(f"{path}: no module {package}; expected an importable one")


def _read_array(values: list[Any], spec: Mapping[str, Any]) -> Any:
    dtype = jnp.dtype(spec["dtype"])
    if jnp.issubdtype(dtype, np.floating):
        values = [float(v) for v in values]
    array = np.array(values, dtype).reshape(spec["shape"])
    # A pytree's field keeps the type of JAX's arrays; NumPy's numbers become float32 there.
    return array if dtype.itemsize > 4 or dtype in (np.float32, np.bool_) else jnp.asarray(array)


def _fields(value: Any) -> list[dataclasses.Field[Any]]:
    """What the object was made of; of a flax module, without its place in a larger one."""
    own = ("parent", "name") if _is_module(value) else ()
    return [f for f in dataclasses.fields(value) if f.init and f.name not in own]


def _is_module(value: Any) -> bool:
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(value, linen.Module)


def _known(wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


def _under(at: str, name: object) -> str:
    return f"{at}.{name}" if at else str(name)


def _place(at: str) -> str:
    return at or "the object"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
