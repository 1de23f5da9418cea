"""Arguments become typed values, or one line that says what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from advjax.cli.parsing import UsageError, number, parse


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float = 0.3
    """Radius."""
    epochs: int = 10
    sizes: tuple[float, ...] = (1.0,)
    data_dir: Path | None = None
    flip: bool = True
    norm: str = "linf"


def parsed(*args: str) -> Config:
    return parse(Config, args, prog="advjax train x.py", description="A claim.")


def complaint(*args: str) -> str:
    with pytest.raises(UsageError) as caught:
        parsed(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_numbers_are_decimals_or_fractions() -> None:
    assert number("8/255") == 8 / 255
    assert number("1e-2") == 0.01
    for wrong in ("x", "1/0", "8/", "1/2/3", ""):
        with pytest.raises(
            ValueError, match="expected a number such as 0.03 or a fraction such as 8/255"
        ):
            number(wrong)


def test_every_field_is_an_option_of_its_type() -> None:
    args = "--eps 8/255 --epochs 3 --sizes 1 2/4 --data-dir d --no-flip --norm l2"
    assert parsed(*args.split()) == Config(8 / 255, 3, (1.0, 0.5), Path("d"), False, "l2")
    assert parsed("--data_dir", "d").data_dir == Path("d")
    assert parsed("--eps=0.1").eps == 0.1


def test_unknown_names_list_the_near_ones() -> None:
    assert complaint("--epoch", "3").startswith("unknown option --epoch; near ones: --epochs")
    assert "--eps" in complaint("--esp=3")
    far = complaint("--zzzz", "3")
    assert "taken: --data-dir, --epochs, --eps" in far and "--norm" in far


def test_values_of_another_type_are_refused_by_name() -> None:
    assert "--epochs" in complaint("--epochs", "1.5")
    assert "--eps" in complaint("--eps", "x") and "8/255" in complaint("--eps", "x")
    assert "given ['y']" in complaint("--sizes", "y")
    assert "stray" in complaint("stray")


def test_help_shows_the_description_the_fields_and_their_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for text in ("A claim.", "--eps", "Radius.", "0.3", "--data-dir", "advjax train x.py"):
        assert text in shown
