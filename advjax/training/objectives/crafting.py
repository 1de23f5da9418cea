"""Objectives in two phases: find the worst inputs, then train on what was found."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from advjax.types import Apply, Array, Aux, Key, Net, Objective


class Crafting(Objective):
    """An objective that crafts inputs before its loss; the two can be called apart.

    ``AWP`` looks at the loss of the same crafted inputs at two places of the parameters.
    """

    @abc.abstractmethod
    def craft(self, net: Net, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The batch with what the loss needs added to it (``x_adv``); no gradient flows."""

    @abc.abstractmethod
    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        """The mean loss of a crafted batch; the net has the keys that crafting had."""

    def __call__(
        self, key: Key, apply: Apply, params: Any, stats: Any, batch: Mapping[str, Array]
    ) -> tuple[Array, Aux]:
        net = Net(key, apply, params, stats)
        return self.loss(net, self.craft(net, batch))
