"""The attacks that the command line knows by name."""

from typing import get_args

import pytest

from advjax import APGD, DDN, Attack, Targeted, WorstOf
from advjax.cli.options import Budget, Method, attack_of
from advjax.cli.parsing import UsageError


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_is_an_attack_of_that_radius(method):
    attack = attack_of(method, 0.5, Budget(norm="l2"))
    assert isinstance(attack, Attack)
    inner = attack.attacks[0] if isinstance(attack, WorstOf) else attack
    assert inner.ball.eps == 0.5


def test_steps_and_targets_reach_it():
    assert attack_of("apgd", 0.1, Budget(steps=7)).steps == 7
    aimed = attack_of("ddn", 2.0, Budget(norm="l2"), targeted=True)
    assert isinstance(aimed, Targeted) and isinstance(aimed.attack, DDN)
    assert isinstance(attack_of("apgd", 0.1, Budget()), APGD)


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("ddn", Budget(), "ddn does not know the norm linf; l2"),
        ("deepfool", Budget(norm="l1"), "deepfool does not know the norm l1; linf, l2"),
        ("apgd", Budget(step_size=0.1), "apgd sets its own step, --step-size does not go"),
        ("autoattack", Budget(steps=10), "autoattack is fixed"),
        ("square", Budget(restarts=3), "square has no random start that --restarts"),
    ],
)
def test_options_that_do_not_go_together_are_refused(method, budget, message):
    with pytest.raises(UsageError, match=message):
        attack_of(method, 0.1, budget)
    with pytest.raises(UsageError, match="autoattack is fixed"):
        attack_of("autoattack", 0.1, Budget(), targeted=True)
