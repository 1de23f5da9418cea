"""Graph regularisation: NSL's distances and reduction, the two ways to a graph, the objective."""

import jax
import numpy as np
import pytest
from linear_net import linear, run, softmax

from advjax.training.objectives import graph
from advjax.training.objectives.graph import (
    GraphRegularization,
    nearest_neighbours,
    neighbours_from_edges,
    pairwise_distance,
)

SOURCES = np.float32([[1, 1], [2, 2], [0, 2], [5, 5]])
TARGETS = np.float32([[1, 1], [0, 2], [4, 4], [1, 4]])
WEIGHTS = np.float32([[1], [0], [0.5], [0.5]])

RNG = np.random.default_rng(0)
X = RNG.uniform(0.2, 0.8, (4, 4, 4, 1)).astype(np.float32)
Y = np.asarray([0, 1, 2, 0], np.int32)
W = RNG.normal(size=(16, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 4)
BATCH = {
    "x": X,
    "y": Y,
    "neighbours": RNG.uniform(0.2, 0.8, (4, 2, 4, 4, 1)).astype(np.float32),
    "weights": np.float32([[0.9, 0.8], [1, 0], [0, 0], [0.5, 0.5]]),
}


@pytest.mark.parametrize(
    "distance, axis, weights, expected",
    [
        ("l2", -1, 1.0, 10.25),  # (0 + 4 + 20 + 17) / 4 pairs
        ("l2", None, 1.0, 5.125),  # / 8 entries
        ("l1", -1, 1.0, 3.25),
        ("l1", -1, WEIGHTS, 5.5 / 3),  # three pairs have a weight
        ("l2", -1, WEIGHTS, 18.5 / 3),
        ("l1", None, WEIGHTS, 5.5 / 6),
        ("l2", -1, 0.0, 0.0),
    ],
)
def test_the_distances_of_nsl(distance, axis, weights, expected):
    """Item 9, and the same pairs weighted."""
    fields = {"distance": distance, "sum_over_axis": axis}
    got = jax.jit(lambda: pairwise_distance(SOURCES, TARGETS, weights, **fields))()
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_the_cosine_distance_is_of_the_directions():
    sources = np.float32([[1, 1], [1, 1], [3, 4], [-1, -1]])
    targets = np.float32([[1, 1], [5, 5], [4, 3], [1, 1]])
    fields = {"distance": "cosine", "sum_over_axis": -1}
    got = jax.jit(lambda: pairwise_distance(sources, targets, **fields))()
    assert float(got) == pytest.approx(0.51, abs=1e-6)  # (0 + 0 + .04 + 2) / 4


@pytest.mark.parametrize("transform", ["none", "softmax"])
@pytest.mark.parametrize("distance", ["kl", "jsd"])
def test_the_divergences_are_written_out(distance, transform):
    """With 1e-7 in the logarithms: probabilities of exactly zero are taken."""
    p = np.asarray([[1, 0, 0], [0.1, 0.2, 0.7]], np.float64)
    q = np.asarray([[1, 0, 0], [0.1, 0.9, 0]], np.float64)
    given = (np.float32(p), np.float32(q))
    if transform == "softmax":
        p, q = softmax(p), softmax(q)
    kl = lambda a, b: (a * (np.log(a + 1e-7) - np.log(b + 1e-7))).sum(axis=1)
    expected = kl(p, q) if distance == "kl" else (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    call = lambda p: pairwise_distance(
        p, given[1], distance=distance, sum_over_axis=-1, transform=transform
    )
    value, grad = jax.jit(jax.value_and_grad(call))(given[0])
    assert float(value) == pytest.approx(expected.mean(), rel=1e-5)
    assert np.isfinite(grad).all()


def test_the_loss_and_its_gradient_are_the_closed_form():
    objective = GraphRegularization(multiplier=0.3, sum_over_axis=-1)
    (loss, aux), grad = run(objective, W, KEYS, BATCH)
    w, x = np.float64(W), np.asarray(X, np.float64).reshape(4, 16)
    near = np.asarray(BATCH["neighbours"], np.float64).reshape(4, 2, 16)
    weights = np.asarray(BATCH["weights"], np.float64)
    p = softmax(x @ w)
    apart = x[:, None] @ w - near @ w
    distance = (weights * (apart**2).sum(-1)).sum() / 5  # five edges
    assert float(aux.metrics["graph_loss"]) == pytest.approx(distance, rel=1e-5)
    supervised = -np.log(p[np.arange(4), Y]).mean()
    assert float(loss) == pytest.approx(supervised + 0.3 * distance, rel=1e-5)
    expected = x.T @ (p - np.eye(3)[Y]) / 4 + 0.3 * 2 / 5 * np.einsum(
        "bn,bnd,bnk->dk", weights, x[:, None] - near, apart
    )
    np.testing.assert_allclose(grad, expected, atol=1e-5)


def test_edges_are_counted_on_all_devices_together():
    """The mean of two shards with three and two edges is the whole batch's."""
    objective = GraphRegularization(
        multiplier=0.3, distance="kl", sum_over_axis=-1, transform="softmax"
    )

    class Sharded:
        axis_name = "batch"
        __call__ = staticmethod(linear)

    shard = lambda v: v.reshape(2, 2, *v.shape[1:])
    call = lambda k, b: objective(k, Sharded(), W, {}, b)[0]
    split = jax.jit(jax.vmap(call, axis_name="batch"))(shard(KEYS), jax.tree.map(shard, BATCH))
    (whole, _), _ = run(objective, W, KEYS, BATCH)
    assert float(split.mean()) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "jsd"])
def test_no_edges_and_equal_answers_stay_finite(distance):
    transform = "softmax" if distance == "jsd" else "none"
    objective = GraphRegularization(distance=distance, sum_over_axis=-1, transform=transform)
    for weights in (BATCH["weights"], 0 * BATCH["weights"]):
        found = run(objective, 0 * W, KEYS, {**BATCH, "weights": weights})
        assert all(np.isfinite(v).all() for v in jax.tree.leaves(found))


def test_nearest_neighbours_are_those_of_a_full_sort(monkeypatch):
    """In blocks that do not divide the number of examples; fewer than k is the example itself."""
    monkeypatch.setattr(graph, "_BLOCK", 16)
    points = RNG.normal(size=(50, 3))
    points[7] = 0
    index, weights = nearest_neighbours(points, 4, threshold=0.9)
    unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-6)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    order = np.argsort(-cosine, axis=1)[:, :4]
    similar = np.take_along_axis(cosine, order, axis=1)
    assert 0 < (similar < 0.9).sum() < similar.size
    np.testing.assert_allclose(weights, np.where(similar < 0.9, 0, similar), atol=1e-6)
    np.testing.assert_array_equal(index, np.where(similar < 0.9, np.arange(50)[:, None], order))
    assert index.dtype == np.int32 and weights.dtype == np.float32


def test_edges_keep_the_heaviest_neighbours():
    edges = [[0, 1], [0, 2], [0, 3], [1, 0], [0, 2], [2, 2]]
    index, weights = neighbours_from_edges(edges, 4, 2, [0.5, 0.2, 0.9, 0.3, 0.7, 1.0])
    np.testing.assert_array_equal(index, [[3, 2], [0, 1], [2, 2], [3, 3]])
    np.testing.assert_allclose(weights, [[0.9, 0.7], [0.3, 0], [0, 0], [0, 0]])
    index, weights = neighbours_from_edges([[0, 1], [0, 2]], 3, 1, undirected=True)
    np.testing.assert_array_equal(index, [[1], [0], [0]])
    np.testing.assert_array_equal(weights, np.ones((3, 1)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nearest_neighbours(np.ones((3, 2)), 3), "given k=3; expected 1 to 2"),
        (lambda: neighbours_from_edges([[0, 4]], 4, 1), "expected integers from 0 to 3"),
        (
            lambda: GraphRegularization()(KEYS, linear, W, {}, {"x": X, "y": Y}),
            "given a batch of x, y; expected neighbours and weights too",
        ),
        (lambda: neighbours_from_edges([[0, 1]], 4, 1, [0.0]), "numbers > 0, one per edge"),
    ],
)
def test_what_it_does_not_take_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
