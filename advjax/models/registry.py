"""The zoo by name: ``create(name, **fields)`` and back, ``describe(module)``."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from advjax.models import densenet, faces, resnet, small

# name: (module class, the fields that make the name)
_ZOO: dict[str, tuple[Any, dict[str, Any]]] = {
    "convnet48": (faces.ConvNet48, {}),
    "densenet48": (faces.DenseNet48, {}),
    "densenet121": (
        densenet.DenseNet,
        {"blocks": (6, 12, 24, 16), "growth": 32},
    ),
    "densenet_bc": (densenet.DenseNet, {}),
    "lecture_cnn": (small.LectureCNN, {}),
    "lenet5": (small.LeNet5, {}),
    "mlp": (small.MLP, {}),
    "mnist_fast": (small.MNISTFast, {}),
    "mnist_madry": (small.MNISTMadry, {}),
    "preact_resnet18": (resnet.PreActResNet, {}),
    "resnet18": (resnet.ResNet, {}),
    "resnet34": (resnet.ResNet, {"stages": (3, 4, 6, 3)}),
    "resnet50": (resnet.ResNet, {"stages": (3, 4, 6, 3), "bottleneck": True}),
}
_DTYPES = ("float32", "bfloat16", "float16")


def names() -> tuple[str, ...]:
    """What ``create`` takes, sorted."""
    return tuple(sorted(_ZOO))


def create(name: str, **fields: Any) -> nn.Module:
    """A network of the zoo.

    Args:
      name: one of ``names()``.
      **fields: its fields, over the defaults; lists are taken for tuples, names for dtypes.

    Raises:
      ValueError: unknown name or field; the message lists the known ones, near ones first.
    """
    if name not in _ZOO:
        raise ValueError(f"unknown model {name!r}; {_suggest(name, names())}")
    cls, preset = _ZOO[name]
    known = _fields(cls)
    for field in fields:
        if field not in known:
            raise ValueError(f"unknown field {field!r} of {name}; {_suggest(field, tuple(known))}")
    given = {k: _normal(k, v) for k, v in fields.items()}
    if not isinstance(given.get("classes", 1), int) or given.get("classes", 1) < 1:
        raise ValueError(f"classes={given['classes']!r}; expected a whole number of at least 1")
    return cls(**{**preset, **given})


def describe(module: nn.Module) -> dict[str, Any]:
    """What ``create`` needs to build the module again: ``{"name": ..., "fields": {...}}``.

    Everything in it is JSON-able; fields at their defaults are left out.

    Raises:
      ValueError: if the module is not of the zoo.
    """
    matches = []
    for name in names():
        cls, preset = _ZOO[name]
        if type(module) is cls and module.name is None:
            here = {k: _normal(k, getattr(module, k)) for k in _fields(cls)}
            base = cls(**preset)
            there = {k: _normal(k, getattr(base, k)) for k in here}
            changed = {k: _jsonable(v) for k, v in here.items() if v != there[k]}
            matches.append((len(changed), name, changed))
    if not matches:
        raise ValueError(
            f"{type(module).__name__} is not of the zoo; taken are modules made by create(): "
            + ", ".join(names())
        )
    _, name, changed = min(matches, key=lambda m: m[:2])
    return {"name": name, "fields": changed}


def _fields(cls: Any) -> dict[str, Any]:
    return {f.name: f for f in dataclasses.fields(cls) if f.name not in ("parent", "name")}


def _normal(field: str, value: Any) -> Any:
    if field == "dtype":
        dtype = jnp.dtype(value)
        if dtype.name not in _DTYPES:
            raise ValueError(f"dtype {dtype.name}; taken are {', '.join(_DTYPES)}")
        return dtype
    return tuple(value) if isinstance(value, list) else value


def _jsonable(value: Any) -> Any:
    if isinstance(value, jnp.dtype):
        return value.name
    return list(value) if isinstance(value, tuple) else value


def _suggest(wrong: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.5)
    known_text = f"known are {', '.join(known)}"
    return f"did you mean {' or '.join(near)}? {known_text}" if near else known_text
