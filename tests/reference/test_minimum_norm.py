"""Minimum-norm attacks find the closest adversarial point of a linear model inside the box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closest_points import farthest_target, length, smallest_change, untargeted
from linear import affine

from advjax import L0, L1, L2, PGD, Linf, Targeted, margin, replace
from advjax.attacks.carlini_wagner import CarliniWagner
from advjax.attacks.carlini_wagner_l0 import CarliniWagnerL0
from advjax.attacks.carlini_wagner_linf import CarliniWagnerLinf
from advjax.attacks.ddn import DDN
from advjax.attacks.deepfool import DeepFool
from advjax.attacks.ead import EAD
from advjax.attacks.fab import FAB
from advjax.attacks.fmn import FMN
from advjax.attacks.minimal_norm import MinimalNorm
from advjax.attacks.penalised import Penalised
from advjax.attacks.sigma_zero import SigmaZero

BALLS = {"linf": Linf(), "l2": L2(), "l1": L1(), "l0": L0()}
SHAPES = {1: (48,), 2: (8, 6), 3: (4, 4, 3)}  # an image's feature axes
# How far from the optimum: the mean over the images, and the worst image; in L0 that is one feature
# too many, which is half of the answer where two do.
WITHIN = {"linf": (1.01, 1.03), "l2": (1.01, 1.03), "l1": (1.05, 1.1), "l0": (1.05, 1.5)}
FIRST = {"linf": 0.1, "l2": 0.5, "l1": 1.0, "l0": 4.0}


def searched(ball):
    """PGD at the smallest budget. In L0 a step must reach the bounds: the projection keeps the
    features that it moves farthest."""
    norm = type(ball).__name__.lower()
    step = 100 if norm == "l0" else FIRST[norm] / 10
    pgd = PGD(
        ball=replace(ball, eps=FIRST[norm]),
        steps=60,
        step_size=step,
        random_start=False,
        loss=margin,
    )
    return MinimalNorm(pgd, searches=10)


def penalised(ball):
    """The model is thirty times as steep as a network, and so must the penalty be."""
    weight = {Linf: 5, L2: 3000, L1: 700}[type(ball)]
    return Penalised(ball=ball, weight=weight, steps=4000 if isinstance(ball, L1) else 1000)


# Every rank and both goals for every attack, but not every combination: the goal is one sign, and
# each case is a compilation. (name, attack of a ball, norm, rank of an image, targeted)
TABLE = [
    ("ddn", lambda ball: DDN(ball=ball, steps=300, levels=None), "l2 1 U, l2 3 T"),
    ("ddn_in_box", lambda ball: DDN(ball=ball, steps=300, levels=None, in_box=True), "l2 2 U"),
    ("fmn", lambda ball: FMN(ball=ball, steps=300), "linf 1 U, linf 2 T, l2 2 T, l1 3 U"),
    # At its published step size, 1.00 to 1.08: it adds what is steep, however little room it has.
    ("fmn", lambda ball: FMN(ball=ball, steps=300, step_size=100), "l0 1 T"),
    ("sigma_zero", lambda ball: SigmaZero(ball=ball), "l0 2 U, l0 3 T"),
    ("minimal_norm", searched, "linf 1 T, l2 2 U, l1 3 T, l0 2 U"),
    ("fab", lambda ball: FAB(ball=ball, steps=30), "linf 1 U, l2 2 T, l1 3 U"),
    ("fab_t", lambda ball: FAB(ball=ball, steps=30, rank=1), "linf 2 U, l1 1 U"),
    # Up to its overshoot of 2 % beyond, and on the way min(room, t * slope), as the answer is.
    ("deepfool", lambda ball: DeepFool(ball=ball), "linf 3 T, l2 1 U, l2 2 T"),
    ("carlini_wagner", lambda ball: CarliniWagner(steps=500, searches=6, c=0.1), "l2 1 U, l2 3 T"),
    ("carlini_wagner", lambda ball: CarliniWagnerLinf(), "linf 2 U, linf 3 T"),
    ("carlini_wagner", lambda ball: CarliniWagnerL0(c=0.1), "l0 1 U, l0 2 T"),
    # At the authors' beta of 0.001 the squares have their say: up to 1.6 times the smallest L1.
    ("ead", lambda ball: EAD(ball=ball, beta=0.05), "l1 1 T, l1 2 U"),
    ("penalised", penalised, "linf 1 U, l2 2 T, l1 3 U"),
]
CASES = [
    pytest.param(make, norm, int(rank), goal == "T", id=f"{name}-{norm}-{rank}d-{goal}")
    for name, make, cases in TABLE
    for norm, rank, goal in map(str.split, cases.split(", "))
]


@pytest.fixture(scope="module")
def far():
    """Weights, bias, images far from their nearest boundary, and labels.

    The weights are large, as a trained network's: the gradient of the cross entropy then points
    to one class, not to a mixture. The nearest class is clear: an untargeted attack follows the
    runner-up, which is another question than whether it finds the closest point.
    """
    rng = np.random.default_rng(5)
    weights, bias = 30 * rng.normal(size=(48, 4)), 30 * rng.normal(size=4)
    x = rng.uniform(0, 1, size=(2000, 48)).astype(np.float32).astype(float)
    first, second, third = np.sort(x @ weights + bias, axis=1)[:, :-4:-1].T
    clear = np.where(first - third > 2 * (first - second), first - second, 0)
    x = x[np.argsort(-clear)[:12]]
    return weights, bias, x, np.argmax(x @ weights + bias, axis=1)


@pytest.mark.parametrize(("make", "norm", "rank", "targeted"), CASES)
def test_finds_the_closest_adversarial_point(make, norm, rank, targeted, far, key):
    weights, bias, x, y = far
    attack, goal = make(BALLS[norm]), y
    each = list(zip(x, y, strict=True))
    if targeted:
        found = [farthest_target(norm, weights, bias, *one) for one in each]
        goal, best = map(np.array, zip(*found, strict=True))
        attack = Targeted(attack)
    else:
        best = np.array([untargeted(norm, weights, bias, *one) for one in each])
    model = jax.tree_util.Partial(affine, jnp.float32(weights), jnp.float32(bias))
    images = jnp.asarray(x, jnp.float32).reshape(-1, *SHAPES[rank])
    record = attack.run(key, model, images, jnp.asarray(goal, jnp.int32))
    assert record.success.all()
    distance = np.asarray(record.distance)
    moved = np.asarray(record.x_adv, float).reshape(x.shape) - x
    np.testing.assert_allclose(distance, [length(norm, row) for row in moved], rtol=1e-4)
    mean, worst = WITHIN[norm]
    ratio = distance / best
    assert (ratio > 1 - 1e-3).all(), ratio  # nothing is closer than the closest
    assert distance.mean() <= mean * best.mean(), ratio
    assert (ratio <= worst).all(), ratio


@pytest.mark.parametrize("norm", BALLS)
def test_no_random_point_is_closer_than_the_closest(norm):
    """The oracle itself: feasible, on the boundary, and not beaten by 20,000 tries."""
    rng = np.random.default_rng(1)
    weights, room = rng.uniform(0, 1, 6), rng.uniform(0, 1, 6)
    gap = 0.6 * weights @ room
    best = smallest_change(norm, weights, gap, room)
    assert weights @ best >= gap - 1e-9 and (best <= room + 1e-12).all() and (best >= 0).all()
    tries = rng.uniform(0, 1, (20_000, 6)) * room * rng.integers(0, 2, (20_000, 6))
    tries = np.concatenate([tries, np.minimum(best + 0.02 * rng.normal(size=tries.shape), room)])
    tries = np.maximum(tries, 0)
    lengths = np.array([length(norm, t) for t in tries[tries @ weights >= gap]])
    assert len(lengths) > 1000 and lengths.min() >= length(norm, best) - 1e-9
    assert smallest_change(norm, weights, 1.01 * weights @ room, room) is None
    np.testing.assert_array_equal(smallest_change(norm, weights, -1, room), 0)
