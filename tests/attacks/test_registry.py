"""The table of attacks says what is true of them, and the documentation is made of it."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import advjax
from advjax import Target
from advjax.attacks import Attack, registry
from advjax.attacks.core.oracle import Labels, Scores

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("entry", registry.ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_an_attack_on_every_norm_it_names(entry):
    assert hasattr(advjax, entry.name)
    for norm in entry.norms or ("l2",):
        attack = entry.make(registry.ball_of(norm, 1.0 if entry.norms else float("inf")))
        assert isinstance(attack, Attack)
        if entry.targeted:
            assert isinstance(attack.with_goal(Target()), Attack)
    for norm in set(registry.ALL) - set(entry.norms) if entry.norms else ():
        with pytest.raises((TypeError, ValueError), match="expected"):
            entry.make(registry.ball_of(norm, 1.0))


def test_every_attack_is_in_the_table():
    listed = set(registry.names())
    made_of_others = {
        *("Attack", "EOT", "Lattice", "Restarts", "Targeted", "TransferFGSM", "Transferred"),
        "WorstOf",
    }
    for name in advjax.__all__:
        thing = getattr(advjax, name)
        if isinstance(thing, type) and issubclass(thing, Attack):
            assert name in listed | made_of_others, name


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown attack 'pgd'; known are FGSM, BIM, PGD"):
        registry.entry("pgd")
    assert registry.entry("PGD").name == "PGD"
    with pytest.raises(ValueError, match="unknown norm 'l7'; known are linf, l2, l1, l0"):
        registry.ball_of("l7")


def test_the_page_is_the_tables():
    sys.path.insert(0, str(ROOT / "docs"))
    import make_attacks

    made = make_attacks.page()
    assert made == (ROOT / "docs" / "attacks.md").read_text(), "run python docs/make_attacks.py"


def test_a_black_box_attack_asks_for_no_gradient(tiny, key):
    """Scores and labels alone: a model whose gradient is an error is attacked all the same."""
    model, _, x, y = tiny

    @jax.custom_jvp
    def forward(x):
        return model(x)

    @forward.defjvp
    def _(primals, tangents):
        raise AssertionError("a gradient was asked for")

    small = {
        "Square": {"steps": 3},
        "OnePixel": {"population": 4, "steps": 1, "chunk": 4},
        "NES": {"queries": 20, "samples": 4},
        "SPSA": {"queries": 20, "samples": 4},
        "SimBA": {"queries": 20},
        "Boundary": {"queries": 40},
        "HopSkipJump": {"queries": 60},
        "Spatial": {"shifts": 1, "rotations": 2},
        "Patch": {"pixels": np.ones((2, 2, 1), np.float32)},
        "Universal": {"delta": 0.1},
    }
    for entry in registry.ENTRIES:
        if entry.oracle != "gradient":
            ball = registry.ball_of(entry.norms[0], 1.0) if entry.norms else registry.ball_of("l2")
            advjax.replace(entry.make(ball), **small[entry.name])(key, forward, x, y)
    assert Scores(forward)(x).shape == (8, 5) and Labels(forward)(x).shape == (8,)
