"""An attack around another one."""

from __future__ import annotations

from typing import Any

from advjax.balls import Ball
from advjax.pytrees import ArrayLike, replace
from advjax.types import Attack, Goal, LossFn


class Wrapper(Attack):
    """An attack that changes how another one is run; what is not changed is the other one's."""

    attack: Attack

    def check(self) -> None:
        if not isinstance(self.attack, Attack):
            name, given = type(self).__name__, type(self.attack).__name__
            raise TypeError(f"{name}: given attack={given}; expected an advjax attack")

    @property
    def ball(self) -> Ball | None:
        return self.attack.ball

    @property
    def bounds(self) -> tuple[ArrayLike, ArrayLike]:
        return self.attack.bounds

    @property
    def goal(self) -> Goal:
        return self.attack.goal

    @property
    def loss(self) -> LossFn:
        return self.attack.loss

    def with_goal(self, goal: Goal) -> Any:
        return replace(self, attack=self.attack.with_goal(goal))

    def scaled(self, factor: ArrayLike) -> Any:
        return replace(self, attack=self.attack.scaled(factor))

    def parts(self) -> tuple[Attack, ...]:
        return (self.attack,)
