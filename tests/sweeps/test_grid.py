"""Grids are an algebra of settings; a configuration has one name."""

import dataclasses
import math

import pytest

from advjax.sweeps import Grid, choices, geometric, linear, log_uniform, sample, together, uniform
from advjax.sweeps.grid import config_hash


@dataclasses.dataclass(frozen=True)
class Config:
    network: str = "plain"
    batch_norm: bool = False
    lr: float = 0.1
    widths: tuple[int, ...] = (8,)
    seed: int = 0


def test_a_product_has_every_combination_and_the_last_axis_is_the_fastest():
    grid = choices(lr=[0.1, 0.2], seed=range(3))
    assert len(grid) == 6 and list(grid)[1] == {"lr": 0.1, "seed": 1}
    assert grid.axes == {"lr": [0.1, 0.2], "seed": [0, 1, 2]}
    assert grid.settings == (choices(lr=[0.1, 0.2]) * choices(seed=range(3))).settings


def test_a_sum_has_conditional_axes_and_each_setting_once():
    plain = choices(network=["plain"], batch_norm=[False, True])
    grid = plain + choices(network=["dense"]) + plain
    assert [s["network"] for s in grid] == ["plain", "plain", "dense"]
    kept = grid.where(lambda s: s.get("batch_norm", True))
    assert [s["network"] for s in kept] == ["plain", "dense"]


def test_axes_that_change_together_are_no_product():
    grid = together(lr=(0.1, 0.2), widths=((4,), (8, 8)))
    assert list(grid) == [{"lr": 0.1, "widths": (4,)}, {"lr": 0.2, "widths": (8, 8)}]


def test_configurations_are_the_base_with_the_settings_in_it():
    configs = choices(lr=[1, 0.5], widths=[[4, 4]]).configs(Config(seed=7))
    assert configs[0] == Config(lr=1.0, widths=(4, 4), seed=7)
    assert isinstance(configs[0].lr, float)
    # 1 and 1.0 are one configuration, and so is one that is set to what the base has.
    assert len(choices(lr=[1, 1.0, 0.1]).configs(Config())) == 2
    names = {config_hash(c) for c in (Config(), Config(lr=0.1), Config(widths=[8]))}
    assert len(names) == 1 and all(len(n) == 16 for n in names)
    assert config_hash(Config(seed=1)) not in names


def test_ranges_have_both_ends():
    assert linear(0, 1, 5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert geometric(1e-4, 1e-1, 4) == (1e-4, 1e-3, 1e-2, 1e-1)
    assert linear(2, 2, 1) == (2.0,)


def test_random_settings_are_drawn_by_the_seed_and_a_longer_list_begins_alike():
    axes = dict(lr=log_uniform(1e-4, 1e-1), widths=[(4,), (8,)], seed=range(100))
    few, many = sample(20, 3, **axes), sample(400, 3, **axes)
    assert few.settings == many.settings[:20] != sample(20, 4, **axes).settings
    rates = [math.log10(s["lr"]) for s in many]
    assert min(rates) >= -4 and max(rates) <= -1
    assert sum(r < -2.5 for r in rates) / 400 == pytest.approx(0.5, abs=0.1)
    assert all(0.2 <= s["lr"] <= 0.3 for s in sample(9, lr=uniform(0.2, 0.3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choices(lr=0.1), "axis lr: given 0.1; expected a list of values"),
        (lambda: choices(network="plain"), "expected a list of values"),
        (lambda: choices(lr=[]), "axis lr has no values"),
        (lambda: choices(lr=[object()]), "numbers, strings"),
        (lambda: choices(lr=[1]) * choices(lr=[2]), "lr is an axis of both"),
        (lambda: together(lr=[1], seed=[1, 2]), "as many on each"),
        (lambda: choices(l_r=[1]).configs(Config()), "the grid sets l_r; fields of Config are lr"),
        (lambda: sample(3, 0, network=["a", "b"]), "gave 2 different settings"),
        (lambda: sample(0, lr=[1]), "expected at least 1"),
        (lambda: geometric(0, 1, 3), "0 < low <= high"),
        (lambda: uniform(2, 1), "low <= high"),
    ],
)
def test_bad_grids_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_empty_filter_is_an_empty_grid():
    assert len(choices(lr=[1]).where(lambda s: False)) == 0
    assert Grid(()).axes == {}
