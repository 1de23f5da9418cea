"""Rows of the contract's table: attacks that change few pixels."""

from collections.abc import Callable

from advjax import L0, Attack
from advjax.attacks.jsma import JSMA
from advjax.attacks.one_pixel import OnePixel

ROWS: dict[str, Callable[[], Attack]] = {
    "jsma": lambda: JSMA(ball=L0(6), theta=0.5),
    "jsma_logits_down": lambda: JSMA(ball=L0(6), theta=-0.5, probabilities=False),
    "one_pixel": lambda: OnePixel(ball=L0(2), population=8, chunk=4, steps=2),
}
