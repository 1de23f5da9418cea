"""What the attacks refuse, in one line that says what was given and what is expected."""

from __future__ import annotations

from typing import Any

import numpy as np

from advjax.balls import Ball, check_finite, concrete
from advjax.losses import dlr
from advjax.pytrees import Array, ArrayLike
from advjax.types import Goal


def check_ball(
    attack: str, ball: Any, *kinds: type[Ball], finite: bool = False, expected: str | None = None
) -> None:
    """Raises unless ``ball`` is a ball, of one of the ``kinds`` if there are any.

    Args:
      attack: whose argument it is.
      ball: the argument.
      kinds: the classes expected; none for all.
      finite: whether it has to have an eps.
      expected: what the message says is expected; by default the names of the classes.
    """
    if not isinstance(ball, kinds or (Ball,)):
        if expected is None:
            *most, last = [kind.__name__ for kind in kinds] or ["a ball such as Linf(eps)"]
            expected = f"{', '.join(most)} or {last}" if most else last
        raise TypeError(f"{attack}: given ball={ball!r}; expected {expected}")
    if finite:
        check_finite(attack, ball)


def check_count(attack: str, name: str, value: Any, least: int = 1, *, none: bool = False) -> None:
    """Raises ValueError unless the value is an integer of at least ``least`` (or None)."""
    if none and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        expected = f"{'None or ' if none else ''}an integer >= {least}"
        raise ValueError(f"{attack}: given {name}={value!r}; expected {expected}")


def check_number(attack: str, name: str, value: ArrayLike, *, zero: bool = False) -> None:
    """Raises ValueError unless the number, where it is known, is positive (or zero)."""
    known = concrete(value)
    if known is not None and not ((known >= 0) if zero else (known > 0)).all():
        expected = "numbers >= 0" if zero else "numbers > 0"
        raise ValueError(f"{attack}: given {name}={known.tolist()}; expected {expected}")


def check_share(attack: str, name: str, value: ArrayLike) -> None:
    """Raises ValueError unless the number, where it is known, lies between 0 and 1."""
    known = concrete(value)
    if known is not None and not ((known > 0) & (known < 1)).all():
        raise ValueError(
            f"{attack}: given {name}={known.tolist()}; expected numbers between 0 and 1"
        )


def check_rank(attack: str, rank: ArrayLike | None, goal: Goal) -> None:
    """Raises ValueError unless the rank, where it is known, is a class's place below the label."""
    known = concrete(rank)
    if known is not None and not ((known >= 1) & (known == known.round())).all():
        raise ValueError(f"{attack}: given rank={known.tolist()}; expected integers >= 1")
    if rank is not None and goal.targeted:
        raise ValueError(f"{attack}: given a rank and goal={goal!r}; expected one of the two")


def check_loss(attack: str, loss: Any, goal: Goal) -> None:
    """Raises ValueError for a loss whose gradient vanishes on the way to a target."""
    check_goal(attack, goal)
    if not callable(loss):
        raise TypeError(
            f"{attack}: given loss={loss!r}; expected a function (logits [B, K], y [B]) -> [B], "
            "such as cross_entropy"
        )
    if goal.targeted and loss is dlr:
        raise ValueError(
            f"{attack}: given loss=dlr and goal={goal!r}; it is constant where the target has the "
            "third largest logit: expected cross_entropy or margin (APGD's rank for targeted DLR)"
        )


def check_goal(attack: str, goal: Any, *kinds: type[Goal]) -> None:
    """Raises TypeError unless the goal is one, of the ``kinds`` if there are any."""
    if not isinstance(goal, kinds or (Goal,)):
        names = " or ".join(f"{kind.__name__}()" for kind in kinds) or "one such as Target()"
        raise TypeError(f"{attack}: given goal={goal!r}; expected {names}")


def check_pictures(attack: str, x: Array) -> None:
    """Raises ValueError unless the images are ``[B, H, W, C]``."""
    if x.ndim != 4:
        raise ValueError(f"{attack}: given images of shape {x.shape}; expected [B, H, W, C]")


def check_unbounded(attack: str, ball: Any) -> None:
    """Raises unless the ball is one without eps and mask, which gives the box and the norm."""
    check_ball(attack, ball, expected="a ball such as L2()")
    eps = concrete(ball.eps)
    if eps is not None and not np.isinf(eps).all():
        raise ValueError(f"{attack}: given eps={eps.tolist()}; expected a ball without eps")
    if ball.mask is not None:
        raise ValueError(f"{attack}: given a mask; expected a ball without one, all pixels move")
