"""Every attack of the table by its name, with its own fields as options."""

import dataclasses

import numpy as np
import pytest

from advjax import APGD, DDN, JSMA, PGD, Attack, Restarts, Targeted, WorstOf, dlr
from advjax.attacks import registry
from advjax.cli.attack import Options
from advjax.cli.methods import Budget, entry_of, make, names, parse_with_attacks
from advjax.cli.parsing import UsageError

TRAINED = ("Patch", "Universal")
LINE = ("fgsm", "bim", "pgd", "mim", "apgd", "square", "fab", "deepfool", "ddn", "fmn")


def parsed(*args):
    return parse_with_attacks(Options, args, "advjax attack", "")


def made(*args, eps=0.1):
    options, given, (entry,) = parsed(*args)
    return make(entry, eps, options.budget, given)


@pytest.mark.parametrize("entry", registry.ENTRIES, ids=lambda entry: entry.name)
def test_every_attack_of_the_table_is_a_method(entry):
    assert entry_of(entry.name) is entry and entry.name.lower() in names()
    if entry.name in TRAINED:
        with pytest.raises(UsageError, match="needs --.*, an .npy file"):
            make(entry, 0.1, Budget())
    else:
        assert isinstance(make(entry, 0.1 if entry.limited else None, Budget()), Attack)


@pytest.mark.parametrize("method", [*LINE, "autoattack"])
def test_every_method_is_an_attack_of_that_radius(method):
    attack = make(entry_of(method), 0.5, Budget(norm="l2"))
    inner = attack.attacks[0] if isinstance(attack, WorstOf) else attack
    assert isinstance(attack, Attack) and inner.ball.eps == 0.5


def test_every_field_of_plain_type_is_an_option():
    """Balls, goals and what follows from other fields are none; nothing else is left out."""
    no_option = {"ball", "goal", "attack"}
    for entry in registry.ENTRIES:
        maker = registry.attacks.__dict__[entry.name]
        if isinstance(maker, type) and entry.name not in TRAINED:
            fields = {f.name for f in dataclasses.fields(maker) if f.init} - no_option
            options, *_ = parsed("--attack", entry.name)
            part = vars(getattr(options, entry.name.lower()))
            assert set(part) == fields and set(part.values()) == {None}, entry.name


def test_fields_reach_it():
    attack = made("--attack", "apgd", "--steps", "7", "--loss", "dlr", "--rho", "3/4")
    assert isinstance(attack, APGD) and attack.loss is dlr
    assert attack.steps == 7 and attack.rho == 0.75
    assert made("--method=bim", "--step-size", "8/255").step_size == np.float32(8 / 255)
    assert made("--attack", "pgd", "--random-start", "False").random_start is False
    assert isinstance(made("--attack", "jsma", eps=None), JSMA)
    assert made("--attack", "hop-skip-jump", "--norm", "l2", eps=None).queries == 25_000
    again = made("--attack", "pgd", "--restarts", "3")
    assert isinstance(again, Restarts) and again.n == 3 and isinstance(again.attack, PGD)
    aimed = make(entry_of("ddn"), 2.0, Budget(), targeted=True)
    assert isinstance(aimed, Targeted) and isinstance(aimed.attack, DDN)


def test_trained_ones_are_read_from_a_file(tmp_path):
    np.save(tmp_path / "change.npy", np.full((2, 2, 1), 0.1, np.float32))
    attack = made("--attack", "universal", "--delta", str(tmp_path / "change.npy"), eps=0.2)
    assert attack.delta.shape == (2, 2, 1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--attack", "ddn", "--norm", "linf"), "ddn does not know the norm linf; expected l2"),
        (("--attack", "deepfool", "--norm", "l1"), "not know the norm l1; expected linf, l2"),
        (("--attack", "flow", "--norm", "l1"), "flow does not know the norm l1; expected no --n"),
        (("--attack", "apgd", "--step-size", "0.1"), "--step-size is for .*pgd, .*not for apgd"),
        (("--attack", "autoattack", "--steps", "10"), "--steps is for .*, not for autoattack"),
        (("--attack", "square", "--restarts", "3"), "square has no random start that --restarts"),
        (("--attack", "pgd", "--loss", "hinge"), "loss"),
        (("--attack", "pgd", "--stepz", "3"), "unknown option --stepz; near ones: --steps"),
        (("--attack", "pdg"), "no attack 'pdg'; near ones: pgd"),
    ],
)
def test_options_that_do_not_go_together_are_refused(args, said):
    with pytest.raises(UsageError, match=said):
        made(*args)


def test_autoattack_has_no_target():
    with pytest.raises(UsageError, match="autoattack has no target"):
        make(entry_of("autoattack"), 0.1, Budget(), targeted=True)


def test_the_help_of_a_method_tells_its_fields(capsys):
    with pytest.raises(SystemExit):
        parsed("--attack", "apgd", "--help")
    shown = capsys.readouterr().out
    assert "apgd options" in shown and "--rho" in shown and "(default: 0.75)" in shown
    assert "{cross_entropy,margin,dlr}" in shown and "--loop" not in shown
