"""Attacks as options: every one of the table by its name, every field of it by its type.

What a field is decides what its option takes: numbers, words and flags are themselves, a loss is
the name of one, an array that the attack cannot do without is an ``.npy`` file. Fields of any other
type, such as balls, goals and loops, are no options.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import tyro

from advjax.cli.parsing import UsageError, parse

if TYPE_CHECKING:
    from advjax.attacks import Attack
    from advjax.attacks.registry import Entry

T = TypeVar("T")
_WORDS = (bool, int, float, str)
_REQUIRED = "required"
_ONE_STEP = {"FGSM": "steps"}  # what other attacks of the same command make
# A lead of 0 may not survive the rounding of an image to 8 bits.
_DEFAULTS: dict[str, dict[str, Any]] = {"Penalised": {"penalty": "l2", "confidence": 0.5}}


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every attack has in common."""

    norm: Literal["linf", "l2", "l1", "l0"] | None = None
    """What eps measures: the largest change of a pixel (linf), Euclidean (l2), summed (l1), or the
    number of changed pixels (l0). None: linf, or the first that the attack knows."""
    restarts: int = 1
    """Tries from new random starts; an image that falls in one of them has fallen."""


@dataclasses.dataclass(frozen=True)
class _Field:
    type: Any
    metavar: str
    default: str
    help: str


def names() -> tuple[str, ...]:
    """Every attack's name on the command line."""
    from advjax.attacks import registry

    return tuple(name.lower() for name in registry.names())


def entry_of(name: str) -> Entry:
    """The attack of that name, ``hop-skip-jump`` or ``hopskipjump``.

    Raises:
      UsageError: if there is none; near ones are named.
    """
    from advjax.attacks import registry

    plain = name.lower().replace("-", "").replace("_", "")
    if plain not in names():
        near = difflib.get_close_matches(plain, names(), n=3, cutoff=0.5)
        raise UsageError(f"no attack {name!r}; near ones: {', '.join(near or names())}")
    return registry.ENTRIES[names().index(plain)]


def parse_with_attacks(
    shared: type[T], args: Sequence[str], prog: str, description: str, default: str = "pgd"
) -> tuple[T, dict[str, Any], list[Entry]]:
    """The options of a command and of the attacks that ``--attack`` names.

    Returns:
      ``shared`` filled, the attacks' fields that were given, and the attacks.

    Raises:
      UsageError: as ``parse``, and for an option that belongs to other attacks only.
    """
    names = _named(args)
    if not names and {"-h", "--help"} & set(args):
        parse(shared, args, prog=prog, description=description)
    entries = [entry_of(name) for name in names or [default]]
    fields = {entry.name.lower(): _fields(entry) for entry in entries}
    own = {name for fields_of_one in fields.values() for name in fields_of_one}
    own -= {"norm", "restarts", *(f.name for f in dataclasses.fields(shared))}  # type: ignore[arg-type]
    part = dataclasses.make_dataclass("Own", [_option(name, fields) for name in sorted(own)])
    place, plain = "_".join(fields), cast("Any", tyro.conf.OmitArgPrefixes)
    member = (place, plain[part], dataclasses.field(default_factory=part))
    both = dataclasses.make_dataclass("Options", [member], bases=(shared,), frozen=True)
    try:
        found: Any = parse(both, args, prog=prog, description=description)
    except UsageError:
        _refuse_others(args, own, fields)
        raise
    given = {n: v for n, v in vars(getattr(found, place)).items() if v is not None}
    return found, given, entries


def _named(args: Sequence[str]) -> list[str]:
    """What follows ``--attack`` or ``--method``."""
    found: list[str] = []
    listing = False
    for arg in args:
        option, _, value = arg.partition("=")
        if arg.startswith("-"):
            listing = option in ("--attack", "--method")
        found += [value or arg] if listing and (value or not arg.startswith("-")) else []
    return found


def _refuse_others(args: Sequence[str], own: set[str], fields: Mapping[str, Any]) -> None:
    """Says whose field an option is that these attacks do not have."""
    from advjax.attacks import registry

    for arg in args:
        option = arg.partition("=")[0]
        name = option.removeprefix("--").replace("-", "_")
        others = [e.name.lower() for e in registry.ENTRIES if name in _fields(e)]
        if option.startswith("--") and name not in own and others:
            raise UsageError(f"{option} is for {', '.join(others)}, not for {', '.join(fields)}")


def _option(name: str, fields: Mapping[str, Mapping[str, _Field]]) -> Any:
    """The option ``name`` of the attacks that have such a field."""
    owners = {attack: own[name] for attack, own in fields.items() if name in own}
    first = next(iter(owners.values()))
    default = ", ".join(f"{field.default} for {attack}" for attack, field in owners.items())
    arg = tyro.conf.arg(
        help=first.help,
        metavar=first.metavar,
        help_behavior_hint=f"(default: {first.default if len(fields) == 1 else default})",
    )
    kinds: Any = functools.reduce(operator.or_, (field.type for field in owners.values()))
    return (name, Annotated[kinds | None, arg], dataclasses.field(default=None))


def make(
    entry: Entry,
    eps: float | None,
    budget: Budget,
    given: Mapping[str, Any] = MappingProxyType({}),
    *,
    targeted: bool = False,
) -> Attack:
    """The attack that the options describe.

    Args:
      entry: of the table.
      eps: radius in ``budget.norm``, for images in [0, 1]; None for no limit.
      budget: norm and restarts.
      given: fields; those of other attacks are left out.
      targeted: aim at a random wrong class of every image.

    Raises:
      UsageError: for options that do not belong together.
      ValueError: for numbers out of range.
    """
    from advjax import attacks
    from advjax.attacks import registry

    name = entry.name.lower()
    ball = registry.ball_of(norm_of(entry, budget) or "l2", float("inf") if eps is None else eps)
    attack: Any = entry.make(ball, **_values(entry, given))
    if budget.restarts != 1:
        if not starts_at_random(attack):
            raise UsageError(f"{name} has no random start that --restarts could vary; use pgd")
        attack = attacks.Restarts(attack=attack, n=budget.restarts)
    if targeted:
        if not entry.targeted:
            raise UsageError(f"{name} has no target; --attack apgd or pgd has")
        attack = attacks.Targeted(attack=attack, choose=attacks.random_target)
    return attack  # type: ignore[no-any-return]


def norm_of(entry: Entry, budget: Budget) -> str | None:
    """The norm that the options mean, None for an attack without one.

    Raises:
      UsageError: if the attack does not know it.
    """
    if budget.norm is None:
        return entry.norms[0] if entry.norms else None
    if budget.norm not in entry.norms:
        raise UsageError(
            f"{entry.name.lower()} does not know the norm {budget.norm}; expected "
            f"{', '.join(entry.norms) or 'no --norm'}"
        )
    return budget.norm


def needs_radius(entry: Entry) -> bool:
    """Whether it works on a budget; others look for the smallest change, or have no norm."""
    return entry.limited and bool(entry.norms) and entry.oracle != "labels"


def starts_at_random(attack: Attack) -> bool:
    """Whether another run of it begins elsewhere."""
    fields = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}  # type: ignore[arg-type]
    return fields.get("random_start") is True


def _values(entry: Entry, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields given of this attack, files loaded and losses looked up."""
    import numpy as np

    from advjax import losses

    found = dict(_DEFAULTS.get(entry.name, {}))
    for name, field in _fields(entry).items():
        if name in given:
            value = given[name]
            value = np.load(value, allow_pickle=False) if isinstance(value, Path) else value
            found[name] = getattr(losses, value) if name == "loss" else value
        elif field.default == _REQUIRED:
            raise UsageError(f"{entry.name.lower()} needs --{name}, an .npy file")
    return found


def _fields(entry: Entry) -> dict[str, _Field]:
    """The options of an attack; those of what its function passes on are among them."""
    from advjax import attacks
    from advjax.attacks import registry

    make = getattr(attacks, entry.name)
    sources: list[tuple[Callable[..., Any], Any]] = [(make, None)]
    if not isinstance(make, type) and inspect.getfullargspec(make).varkw:
        made = entry.make(registry.ball_of(entry.norms[0], 1.0))
        sources.append((type(made), made))
    found: dict[str, _Field] = {}
    for source, made in sources:
        hints = typing.get_type_hints(source)
        texts = _texts(source)
        for name, default in _defaults(source).items():
            kind = _kind(hints[name], default)
            skipped = name in found or name == _ONE_STEP.get(entry.name)
            if kind is None or skipped:
                continue
            default = _DEFAULTS.get(entry.name, {}).get(name, default)
            if isinstance(getattr(made, name, None), (bool, int)):
                default = getattr(made, name)
            found[name] = _Field(*kind, _shown(default), texts.get(name, ""))
    return found


def _defaults(source: Callable[..., Any]) -> dict[str, Any]:
    """Name to default of fields or parameters."""
    if isinstance(source, type):
        fields: Any = dataclasses.fields(source)  # type: ignore[arg-type]
        return {f.name: f.default for f in fields if f.init}
    parameters = inspect.signature(source).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}


def _kind(hint: Any, default: Any) -> tuple[Any, str] | None:
    """The type of an option and what the help calls it; None for what is no option."""
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    for part in parts:
        if part is Any:  # a number or an array
            if _is_missing(default):
                return Path, "FILE.npy"
            if isinstance(default, tuple):
                return tuple[float, ...], "FLOAT ..."
            return float, "FLOAT"
        if part in _WORDS:
            return part, "{True,False}" if part is bool else part.__name__.upper()
        if typing.get_origin(part) is Literal:
            return part, "{" + ",".join(map(str, typing.get_args(part))) + "}"
        if typing.get_origin(part) is tuple:
            return part, "..."
        if _is_loss(part):
            return Literal[_losses()], "{" + ",".join(_losses()) + "}"
    return None


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_loss(hint: Any) -> bool:
    import jax

    return typing.get_args(hint) == ([jax.Array, jax.Array], jax.Array)


def _losses() -> tuple[str, ...]:
    """The losses of logits and labels."""
    from advjax import losses

    functions = {n: f for n, f in vars(losses).items() if inspect.isfunction(f) and n[0] != "_"}
    wanted = ["logits", "y"]
    return tuple(n for n, f in functions.items() if [*inspect.signature(f).parameters] == wanted)


def _texts(source: Callable[..., Any]) -> dict[str, str]:
    """The first sentence on every field, from the docstring."""
    import docstring_parser

    said = docstring_parser.parse(inspect.getdoc(source) or "").params
    plain = lambda text: " ".join((text or "").replace("``", "").split())
    return {p.arg_name: plain(p.description).partition(". ")[0].rstrip(".") + "." for p in said}


def _is_missing(default: Any) -> bool:
    return default is dataclasses.MISSING or default is inspect.Parameter.empty


def _shown(default: Any) -> str:
    if _is_missing(default):
        return _REQUIRED
    if default is None:
        return "the attack's own"
    return getattr(default, "__name__", None) or str(default)
