"""Arguments to typed dataclasses. tyro does the types and the help; errors come out as one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class UsageError(Exception):
    """Bad usage or bad input, told in one line. The process exits with 2."""


def number(text: str) -> float:
    """A decimal number or a fraction: ``0.03``, ``1e-2``, ``8/255``.

    Raises:
      ValueError: if ``text`` is neither.
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"given {text!r}; expected a number such as 0.03 or a fraction such as 8/255"
        ) from None


def _registry() -> Any:
    """tyro's rules, with fractions for every float."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    def float_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
        if info.type is not float:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOAT",
            instance_from_str=lambda args: number(args[0]),
            is_instance=lambda value: isinstance(value, (int, float)),
            str_from_instance=lambda value: [f"{value:.6g}"],
        )

    registry.primitive_rule(float_rule)
    return registry


def parse(cls: type[T], args: Sequence[str], *, prog: str, description: str) -> T:
    """The dataclass ``cls`` filled from ``args``; ``--help`` prints and leaves with 0.

    Args:
      cls: a dataclass; every field is an option ``--name value``, typed by its annotation.
      prog: the command as shown in the help, ``advjax train``.
      description: the text above the help.

    Raises:
      UsageError: for an unknown option (the near ones are named) and for a value that does not
        fit its type.
    """
    import tyro

    if {"-h", "--help"} & set(args):
        print(description, end="\n\n")  # tyro would run the lines of a paragraph into one
    said = io.StringIO()

    def call(args: Sequence[str]) -> T:
        return tyro.cli(cls, args=list(args), prog=prog, description="", registry=_registry())

    try:
        with contextlib.redirect_stderr(said):
            return call(args)
    except SystemExit as stop:
        if not stop.code:
            raise
    help_text = io.StringIO()
    with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
        call(["--help"])
    known = sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", help_text.getvalue())))
    raise UsageError(_unknown(args, known, prog) or _condensed(said.getvalue(), prog))


def _unknown(args: Sequence[str], known: Sequence[str], prog: str) -> str | None:
    """What to say about the first option that does not exist, if one does not."""
    for arg in args:
        name = arg.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            return f"unknown option {name}; {'near ones' if near else 'taken'}: " + ", ".join(
                near or known
            )
    return None


def _condensed(box: str, prog: str) -> str:
    """The message inside tyro's box of text, as one line."""
    lines: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:  # the first is a title
        line = line.strip("│| \t")
        if set(line) - set("─-╰╯+"):
            lines.append(line)
        elif lines:
            break
    message = " ".join(lines) or "the arguments do not fit"
    # tyro's words for a list whose items do not parse say nothing of what would.
    message = re.sub(
        r"Could not find valid parse for arguments: (.*)", r"given \1, which does not fit", message
    )
    return f"{message} (see {prog} --help)"
