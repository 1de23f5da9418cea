"""Rows of the contract's table: attacks that change few pixels."""

from collections.abc import Callable

from advjax import L0
from advjax.attacks._iterate import Attack
from advjax.attacks.one_pixel import OnePixel
from advjax.attacks.saliency import JSMA

ROWS: dict[str, Callable[[], Attack]] = {
    "jsma": lambda: JSMA(ball=L0(6), theta=0.5),
    "jsma_logits_down": lambda: JSMA(ball=L0(6), theta=-0.5, probabilities=False),
    "one_pixel": lambda: OnePixel(ball=L0(2), population=8, chunk=4, steps=2),
}
