"""What the contract table asks of an objective, the networks and images it is tried on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from advjax.models import create
from advjax.models.heads import reverse_gradient
from advjax.training import LinenApply

_RNG = np.random.default_rng(0)
X = _RNG.uniform(0.2, 0.8, (6, 4, 4, 1)).astype(np.float32)
Y = np.asarray([0, 1, 2, 3, 0, 1], np.int32)
W = _RNG.normal(size=(16, 4)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 6)
U = _RNG.uniform(0.2, 0.8, (12, 4, 4, 1)).astype(np.float32)
EDGES = {
    "neighbours": _RNG.uniform(0.2, 0.8, (6, 2, 4, 4, 1)).astype(np.float32),
    "weights": np.float32([[0.9, 0.8], [1, 0], [0, 0], [0.5, 0.5], [1, 1], [0.2, 0]]),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """One as training sees it; the label's logits are ``x @ weights``."""

    apply: Any
    params: Any
    stats: Any
    weights: np.ndarray


def _linear(params, stats, x, *, key=None, train=False):
    return x.reshape(x.shape[0], -1) @ params, stats


def linear(classes):
    return Network(_linear, W[:, :classes], {}, W[:, :classes])


def _heads(params, stats, x, *, key=None, train=False):
    features = x.reshape(x.shape[0], -1) @ params["features"]
    label = features @ params["label"]
    domain = reverse_gradient(features, stats["hyper"]["reversal"]) @ params["domain"]
    return {"label": label, "parity": label[:, :2], "domain": domain}, stats


def heads(classes):
    """Linear features and heads, the domain head's gradient reversed."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"features": draw(16, 5), "label": draw(5, 4)[:, :classes], "domain": draw(5, 1)}
    stats = {"hyper": {"reversal": np.float32(1)}}
    return Network(_heads, params, stats, np.float64(params["features"]) @ params["label"])


def perceptron(classes):
    """A network whose layers are known, for bounds."""
    params = {"Dense_0": {"kernel": W[:, :classes], "bias": np.zeros(classes, np.float32)}}
    apply = LinenApply(create("mlp", classes=classes, hidden=()))
    return Network(apply, params, {}, W[:, :classes])


def cross_entropies(logits, y):
    """In float64, per example."""
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]


def boosted(logits, y):
    """MART's part on the images themselves: without eps and beta it is the loss."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    rival = np.where(np.eye(p.shape[1], dtype=bool)[y], 0, p).max(axis=1)
    return -np.log(p[rows, y]) - np.log(1.0001 - rival)


def increasing(losses, grads, logits, y):
    assert (np.diff(losses) > 0).all()


def evenly(losses, grads, logits, y):
    """The loss is linear in the number."""
    np.testing.assert_allclose(losses[2] - losses[1], losses[1] - losses[0], rtol=1e-4)


def features_evenly(losses, grads, logits, y):
    a, b, c = grads["features"]
    np.testing.assert_allclose(c - b, b - a, atol=1e-5)


def double_the_divergence(losses, grads, logits, y):
    clean = cross_entropies(logits, y).mean()
    np.testing.assert_allclose(losses[2] - clean, 2 * (losses[1] - clean), rtol=1e-3)


def a_share_more(losses, grads, logits, y):
    """Without a step the neighbour is the image itself."""
    np.testing.assert_allclose(losses[1], 1.2 * losses[0], rtol=1e-5)
    assert losses[2] > losses[1]


def every_task(losses, grads, logits, y):
    clean = cross_entropies(logits, y).mean()
    parity = cross_entropies(logits[:, :2], y % 2).mean()
    np.testing.assert_allclose(losses, clean + np.arange(3) * parity, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Row:
    """What the table asks of an objective.

    Attributes:
      make: the objective of one set of numbers.
      numbers: name to three values of it; with the first ones the loss is known.
      known: the mean over the examples of this function of logits and labels is that loss.
      then: looks at the three losses and gradients, in order.
      spec: what is written and read again; by default the objective of the last numbers.
      network: classes -> ``Network``.
      batch: what the batch has beside images and labels; leading axis B, or k for each image.
      fewest: classes that it is tried with, beside four.
      order: an order of the six examples that changes neither loss nor gradient.
      coupled: why the loss is not the mean of what each image has alone; empty where it is.
      scheduled: ``(schedule, factor) -> objective`` whose budget is both; None without a schedule.
      refused: message to a call that raises it as a ValueError.
      wrong_type: likewise, as a TypeError.
    """

    make: Callable[..., Any]
    numbers: dict[str, Any]
    known: Callable[..., Any] = cross_entropies
    then: Callable[..., Any] = increasing
    spec: Callable[[], Any] | None = None
    network: Callable[[int], Network] = linear
    batch: dict[str, Any] = dataclasses.field(default_factory=dict)
    fewest: int = 2
    order: tuple[int, ...] = (3, 0, 5, 1, 4, 2)
    coupled: str = ""
    scheduled: Callable[..., Any] | None = None
    refused: dict[str, Any] = dataclasses.field(default_factory=dict)
    wrong_type: dict[str, Any] = dataclasses.field(default_factory=dict)

    def at(self, i):
        return self.make(**{name: np.float32(v[i]) for name, v in self.numbers.items()})


def take(batch, index):
    """These examples of a batch, with the k images that belong to each."""
    n, index = len(batch["y"]), np.asarray(index)
    one = lambda v: v.reshape(n, -1, *v.shape[1:])[index].reshape(-1, *v.shape[1:])
    return {name: one(v) for name, v in batch.items()}
