"""Training on the worst logits that interval bounds allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from advjax.arguments import check_ball
from advjax.balls import Ball, Linf
from advjax.defences.interval_bounds import box, worst_margins
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, pytree, replace, static
from advjax.training.apply import Bound
from advjax.training.objectives._shared import accuracy, check_fraction, value_at
from advjax.types import Aux, Net, Objective


@pytree
class IBP(Objective):
    """Interval bound propagation: ``kappa CE(logits) + (1 - kappa) CE(worst logits)`` (Gowal et al.
    2018, section 3).

    The worst logits are upper bounds over the whole ball, so what is learnt can be certified
    (``advjax.defences.certified``). No attack is run; a step costs about three plain ones. The
    bounds are those of the network in evaluation mode: without dropout, and with the running
    statistics of BatchNorm.

    It needs both schedules. The paper's on MNIST: 2,000 steps without bounds, then 10,000 over
    which eps grows from 0 and kappa falls from 1 to .5, both linearly, which is
    ``eps_schedule=optax.linear_schedule(0, 1, 10_000, 2_000)`` and
    ``kappa_schedule=optax.linear_schedule(1, .5, 10_000, 2_000)``, and training with a somewhat
    larger eps (.4) than is certified (.3).

    Metrics: ``clean_accuracy``, ``certified_accuracy``.

    Attributes:
      ball: ``Linf``.
      kappa: weight of the plain loss, in [0, 1].
      eps_schedule: step (a traced int32 scalar, from 0) -> factor on the ball's eps; None for 1.
      kappa_schedule: step -> kappa; None for ``kappa`` at every step.
    """

    ball: Ball = dataclasses.field(kw_only=False)
    kappa: ArrayLike = 0.5
    eps_schedule: Callable[[Array], ArrayLike] | None = static(default=None)
    kappa_schedule: Callable[[Array], ArrayLike] | None = static(default=None)

    def check(self) -> None:
        check_ball("IBP", self.ball, Linf, finite=True)
        check_fraction("kappa", self.kappa)

    def at(self, step: Array) -> IBP:
        """The objective of one step, the schedules evaluated."""
        ball, kappa = self.ball, self.kappa
        if self.eps_schedule is not None:
            ball = ball.scaled(value_at(self.eps_schedule, step))
        if self.kappa_schedule is not None:
            kappa = value_at(self.kappa_schedule, step)
        return replace(self, ball=ball, kappa=kappa, eps_schedule=None, kappa_schedule=None)

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        x, y = batch["x"], batch["y"]
        fixed = Bound(params=net.params, stats=net.stats, apply=net.apply)
        margins = worst_margins(fixed, *box(self.ball, x), y)
        logits, stats = net(x)
        plain, worst = (jnp.mean(cross_entropy(z, y)) for z in (logits, margins))
        others = ~jax.nn.one_hot(y, margins.shape[-1], dtype=bool)
        safe = jnp.all(jnp.where(others, margins < 0, True), axis=-1)
        metrics = {
            "clean_accuracy": accuracy(logits, y),
            "certified_accuracy": jnp.mean(safe, dtype=jnp.float32),
        }
        return self.kappa * plain + (1 - self.kappa) * worst, Aux(stats=stats, metrics=metrics)
