"""What a package offers, each public name written once: in the imports of its ``__init__.py``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def declare(package: str) -> None:
    """Sets a package's ``__all__``: what its ``__init__.py`` has imported, without modules."""
    module = sys.modules[package]
    found = (
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    )
    module.__all__ = sorted(found)  # type: ignore[attr-defined]


def lazy(package: str, *own: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported on first use.

    They are the imports under ``if TYPE_CHECKING:`` in its ``__init__.py``, which type checkers
    read as they stand: ``from m import X as X``, and ``from m import *`` for the ``__all__`` of m.

    Args:
      package: its ``__name__``.
      *own: names that ``__init__.py`` defines itself; ``__all__`` has them too.
    """
    homes, whole = _imports(package)

    def names() -> list[str]:
        starred = (name for home in whole for name in importlib.import_module(home).__all__)
        return sorted({*homes, *starred, *own})

    def getattribute(name: str) -> Any:
        if name == "__all__":
            return names()
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        # Python asks for a submodule here before it imports it.
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is None:
            for home in map(importlib.import_module, whole):
                if name in home.__all__:
                    return getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattribute, names


def _imports(package: str) -> tuple[dict[str, str], list[str]]:
    """The module of every name imported under ``if TYPE_CHECKING:``, and those imported whole."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.loader is not None
    source = spec.loader.get_source(package)  # type: ignore[attr-defined]
    homes, whole = {}, []
    for block in ast.parse(source).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                assert isinstance(line, ast.ImportFrom) and line.module is not None
                for name in line.names:
                    if name.name == "*":
                        whole.append(line.module)
                    else:
                        homes[name.name] = line.module
    return homes, whole
