"""The attacks that trade distance against a loss, with few steps."""

from collections.abc import Callable

from advjax import L0, L1, L2, Attack, Linf
from advjax.attacks.carlini_wagner import CarliniWagner
from advjax.attacks.carlini_wagner_l0 import CarliniWagnerL0
from advjax.attacks.carlini_wagner_linf import CarliniWagnerLinf
from advjax.attacks.ead import EAD
from advjax.attacks.penalised import Penalised

ROWS: dict[str, Callable[[], Attack]] = {
    "carlini_wagner": lambda: CarliniWagner(
        ball=L2(0.6), steps=20, searches=3, step_size=0.03, c=0.1
    ),
    "carlini_wagner_linf": lambda: CarliniWagnerLinf(
        ball=Linf(0.2), steps=60, attempt=10, step_size=0.02, c=0.1
    ),
    "carlini_wagner_l0": lambda: CarliniWagnerL0(
        ball=L0(3), steps=60, attempt=10, step_size=0.03, c=0.1
    ),
    "ead": lambda: EAD(ball=L1(), steps=20, searches=3, step_size=0.05, beta=0.01, c=0.1),
    "penalised": lambda: Penalised(ball=L2(), steps=40, step_size=0.01),
    "penalised_l1": lambda: Penalised(ball=L1(), steps=40, step_size=0.01),
    "penalised_linf": lambda: Penalised(ball=Linf(), steps=40, step_size=0.01),
}
