"""Graph regularisation: neighbours in a graph get similar answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import fold_in_each
from advjax.arguments import check_number
from advjax.losses import cross_entropy
from advjax.pytrees import Array, ArrayLike, pytree, replace, static
from advjax.training.objectives._shared import accuracy, check_batch
from advjax.types import Aux, Net, Objective

Distance = Literal["l1", "l2", "cosine", "kl", "jsd"]
Transform = Literal["none", "softmax"]
_DISTANCES = ("l1", "l2", "cosine", "kl", "jsd")
_NEIGHBOURS = 5  # the tag of the neighbours' pass
_BLOCK = 512  # rows of the similarity matrix that are in memory at once


def sum_by_nonzero_weights(losses: Array, weights: ArrayLike, axis_name: str | None) -> Array:
    """``sum(losses * weights) / number of nonzero weights``, a scalar; 0 where there are none.

    The weights broadcast to the losses. Over a mapped axis the number is the mean over its
    devices, so that the mean of their results is the quotient of the whole batch.
    """
    weights = jnp.broadcast_to(jnp.asarray(weights, losses.dtype), losses.shape)
    count = jnp.sum(weights != 0, dtype=losses.dtype)
    if axis_name is not None:
        count = jax.lax.pmean(count, axis_name)
    return jnp.sum(losses * weights) / jnp.where(count > 0, count, 1)


def pairwise_distance(
    sources: Array,
    targets: Array,
    weights: ArrayLike = 1.0,
    *,
    distance: Distance = "l2",
    sum_over_axis: int | None = None,
    transform: Transform = "none",
    axis_name: str | None = None,
) -> Array:
    """The weighted mean distance of pairs, a scalar, as NSL's ``pairwise_distance_wrapper``.

    Reduced by ``sum_by_nonzero_weights``. l2 is the squared difference, l1 the absolute one; each
    is a mean over single entries, or over pairs of their sums along ``sum_over_axis``. cosine is
    one minus the cosine, kl and jsd are ``KL(source || target)`` and the Jensen-Shannon divergence
    of probabilities, with 1e-7 inside every logarithm: these need the axis.

    Args:
      sources: ``[N, ...]`` float.
      targets: of the same shape.
      weights: a number, or an array of the same rank that broadcasts to the sources, of size 1
        along ``sum_over_axis``; 0 is no pair.
      distance: ``"l1"``, ``"l2"``, ``"cosine"``, ``"kl"`` or ``"jsd"``.
      sum_over_axis: the axis of a pair's entries, or None.
      transform: ``"softmax"``, along the axis or the last one, or ``"none"``.
      axis_name: the mapped axis that the pairs are split over.
    """
    if transform == "softmax":
        along = -1 if sum_over_axis is None else sum_over_axis
        sources, targets = (jax.nn.softmax(v, axis=along) for v in (sources, targets))
    total = partial(jnp.sum, axis=sum_over_axis, keepdims=True)
    divergence = lambda p, q: total(p * (jnp.log(p + 1e-7) - jnp.log(q + 1e-7)))
    unit = lambda v: v * jax.lax.rsqrt(jnp.maximum(total(v**2), 1e-12))
    if distance in ("l1", "l2"):
        losses = jnp.abs(sources - targets) if distance == "l1" else (sources - targets) ** 2
        losses = losses if sum_over_axis is None else total(losses)
    elif sum_over_axis is None:
        raise ValueError(f"given distance={distance!r} without sum_over_axis; expected an axis")
    elif distance == "cosine":
        losses = 1 - total(unit(sources) * unit(targets))
    elif distance == "kl":
        losses = divergence(sources, targets)
    else:
        middle = (sources + targets) / 2
        losses = (divergence(sources, middle) + divergence(targets, middle)) / 2
    return sum_by_nonzero_weights(losses, weights, axis_name)


@pytree
class GraphRegularization(Objective):
    """``cross_entropy(x) + multiplier distance(logits of x, logits of its neighbours)``.

    Graph regularisation of Neural Structured Learning, ``nsl.keras.GraphRegularization`` (Bui et
    al. 2018, Neural Graph Machines, equation 2): the distances are weighted by the edges and
    divided by their number. Both sides are differentiated. The neighbours have a training pass of
    their own, and BatchNorm sees them all, those of weight 0 too: fill these with the image itself,
    as the index of ``nearest_neighbours`` does.

    The batch's ``neighbours`` are ``[b, n, ...]`` float images, its ``weights`` ``[b, n]``.

    Metrics: ``clean_accuracy`` and ``graph_loss``, the mean distance.

    Attributes:
      multiplier: weight of the distance, at least 0.
      distance: ``"l1"``, ``"l2"``, ``"cosine"``, ``"kl"`` or ``"jsd"``; see ``pairwise_distance``.
      sum_over_axis: -1 for the distance of a pair of logits, None for the mean over its entries,
        which cosine, kl and jsd do not have.
      transform: ``"softmax"`` compares probabilities, ``"none"`` logits; kl and jsd need the first.
    """

    multiplier: ArrayLike = 0.01
    distance: Distance = static(default="l2")
    sum_over_axis: int | None = static(default=None)
    transform: Transform = static(default="none")

    def check(self) -> None:
        name = "GraphRegularization"
        check_number(name, "multiplier", self.multiplier, zero=True)
        if self.distance not in _DISTANCES:
            known = ", ".join(_DISTANCES)
            raise ValueError(f"{name}: given distance={self.distance!r}; expected one of {known}")
        if self.transform not in ("none", "softmax"):
            raise ValueError(
                f"{name}: given transform={self.transform!r}; expected 'none' or 'softmax'"
            )
        if self.sum_over_axis not in (None, -1):
            raise ValueError(
                f"{name}: given sum_over_axis={self.sum_over_axis}; expected None or -1"
            )
        if self.distance in ("cosine", "kl", "jsd") and self.sum_over_axis is None:
            raise ValueError(f"{name}: given {self.distance} alone; expected sum_over_axis=-1 too")
        if self.distance in ("kl", "jsd") and self.transform != "softmax":
            raise ValueError(
                f"{name}: given {self.distance} of logits; expected transform='softmax'"
            )

    def loss(self, net: Net, batch: Mapping[str, Array]) -> tuple[Array, Aux]:
        check_batch("GraphRegularization", batch, "neighbours", "weights")
        x, y, neighbours, weights = (batch[k] for k in ("x", "y", "neighbours", "weights"))
        n = neighbours.shape[1]
        logits, stats = net(x)
        each = jnp.repeat(fold_in_each(net.key, _NEIGHBOURS), n)
        flat = neighbours.reshape(-1, *x.shape[1:])
        theirs, stats = replace(net, key=each, stats=stats)(flat)
        distance = pairwise_distance(
            jnp.repeat(logits, n, axis=0),
            theirs,
            weights.reshape(-1, 1),
            distance=self.distance,
            sum_over_axis=self.sum_over_axis,
            transform=self.transform,
            axis_name=net.axis,
        )
        loss = jnp.mean(cross_entropy(logits, y)) + self.multiplier * distance
        metrics = {"clean_accuracy": accuracy(logits, y), "graph_loss": distance}
        return loss, Aux(stats=stats, metrics=metrics)


@partial(jax.jit, static_argnums=(2, 3))
def _most_similar(unit: Array, first: int, block: int, k: int) -> tuple[Array, Array]:
    """The k largest cosines, and where, of the ``block`` rows from ``first`` on."""
    rows = jax.lax.dynamic_slice_in_dim(unit, first, block)
    cosine = jnp.matmul(rows, unit.T, precision="highest")
    itself = jnp.arange(len(unit))[None] == first + jnp.arange(block)[:, None]
    return jax.lax.top_k(jnp.where(itself, -jnp.inf, cosine), k)


def nearest_neighbours(
    embeddings: ArrayLike, k: int, threshold: float = 0.8
) -> tuple[np.ndarray, np.ndarray]:
    """The graph of similar examples, as ``nsl.tools.build_graph`` with at most k neighbours.

    An edge joins two examples whose embeddings have a cosine of at least the threshold; the cosine
    is its weight.

    Args:
      embeddings: ``[N, ...]`` float.
      k: the most neighbours of an example, 1 to N - 1.
      threshold: the least cosine of an edge.

    Returns:
      ``index [N, k]`` int32, most similar first, and ``weights [N, k]`` float32. Where there are
      fewer, the index is the example's own and the weight 0.
    """
    flat = jnp.asarray(embeddings, jnp.float32)
    nodes = len(flat)
    flat = flat.reshape(nodes, -1)
    if not 1 <= k < nodes:
        raise ValueError(f"nearest_neighbours: given k={k}; expected 1 to {nodes - 1}")
    unit = flat * jax.lax.rsqrt(jnp.maximum(jnp.sum(flat**2, axis=1, keepdims=True), 1e-12))
    index, weights = np.zeros((nodes, k), np.int32), np.zeros((nodes, k), np.float32)
    block = min(_BLOCK, nodes)
    for start in range(0, nodes, block):
        first = min(start, nodes - block)  # the last block overlaps the one before
        weights[first : first + block], index[first : first + block] = map(
            np.asarray, _most_similar(unit, first, block, k)
        )
    return _without(weights < threshold, index, weights)


def neighbours_from_edges(
    edges: ArrayLike,
    nodes: int,
    k: int,
    weights: ArrayLike | None = None,
    *,
    undirected: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The graph of a list of edges with the k heaviest of each example, as ``nsl.tools.pack_nbrs``.

    Of several edges from one example to another the heaviest counts; of equally heavy ones to
    several, the first in the list. Edges to itself are left out.

    Args:
      edges: ``[E, 2]`` integers, an example and its neighbour.
      nodes: N, how many examples there are.
      k: the most neighbours of an example, at least 1.
      weights: ``[E]``, positive; 1 by default.
      undirected: every edge goes both ways.

    Returns:
      ``index [N, k]`` and ``weights [N, k]`` as ``nearest_neighbours`` returns them.
    """
    edges = np.asarray(edges).reshape(-1, 2)
    heavy = np.ones(len(edges), np.float32) if weights is None else np.asarray(weights, np.float32)
    if k < 1:
        raise ValueError(f"neighbours_from_edges: given k={k}; expected at least 1")
    if heavy.shape != (len(edges),) or not (heavy > 0).all():
        raise ValueError(
            f"neighbours_from_edges: given weights {heavy.shape}; "
            f"expected [{len(edges)}] numbers > 0, one per edge"
        )
    if len(edges) and not (edges.dtype.kind in "iu" and 0 <= edges.min() <= edges.max() < nodes):
        raise ValueError(
            f"neighbours_from_edges: given {edges.dtype} from {edges.min()} to {edges.max()}; "
            f"expected integers from 0 to {nodes - 1}"
        )
    if undirected:
        edges = np.concatenate([edges, edges[:, ::-1]])
        heavy = np.concatenate([heavy, heavy])
    index, chosen = np.zeros((nodes, k), np.int32), np.zeros((nodes, k), np.float32)
    order = np.argsort(-heavy, kind="stable")
    seen: dict[int, set[int]] = {}
    for (source, target), weight in zip(edges[order].tolist(), heavy[order], strict=True):
        found = seen.setdefault(source, set())
        if source != target and target not in found and len(found) < k:
            index[source, len(found)], chosen[source, len(found)] = target, weight
            found.add(target)
    return _without(chosen == 0, index, chosen)


def _without(
    absent: np.ndarray, index: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    own = np.arange(len(index), dtype=np.int32)[:, None]
    return np.where(absent, own, index), np.where(absent, np.float32(0), weights)
