"""The closest adversarial point of a linear model inside the box, exactly, in NumPy.

One linear constraint inside a box has a greedy solution in every norm. Untargeted, the answer is
the nearest over the classes. Targeted, the constraint against the label alone is a relaxation: its
solution is the answer where no other class wins there, and those targets are the ones offered.
"""

import numpy as np


def smallest_change(norm, weights, gap, room):
    """The change of smallest norm with ``weights @ change >= gap``, as absolute values ``[D]``.

    ``weights`` are absolute, ``room`` is how far the box lets each feature go in the useful
    direction. None where the whole room is too little.
    """
    if gap <= 0:
        return np.zeros_like(room)
    if weights @ room < gap:
        return None
    if norm in ("linf", "l2"):  # min(room, t * pull): the gain is piecewise linear in t
        pull = np.ones_like(weights) if norm == "linf" else weights
        bends = np.where(pull > 0, room / np.where(pull > 0, pull, 1), np.inf)
        for bend in np.sort(bends[np.isfinite(bends)]):
            if weights @ np.minimum(room, bend * pull) >= gap:
                free = bends >= bend
                rate = weights[free] @ pull[free]
                t = (gap - weights[~free] @ room[~free]) / rate
                return np.minimum(room, t * pull)
        return room.copy()
    change = np.zeros_like(room)
    order = np.argsort(-weights if norm == "l1" else -weights * room)
    for j in order:
        left = gap - weights @ change
        if left <= 1e-9 * gap:
            break
        # The last feature moves only as far as needed; in L0 that costs the same.
        change[j] = min(room[j], left / weights[j]) if weights[j] > 0 else 0
    return change


def length(norm, change):
    if norm == "l0":
        return float(np.count_nonzero(change))
    return float(np.linalg.norm(change, {"l1": 1, "l2": 2, "linf": np.inf}[norm]))


def towards(norm, weights, bias, x, label, other, lower=0.0, upper=1.0):
    """``(distance, point)``: the nearest where ``other`` ties with ``label``; inf where none is."""
    w = weights[:, other] - weights[:, label]
    gap = -(x @ w + bias[other] - bias[label])
    change = smallest_change(norm, np.abs(w), gap, np.where(w > 0, upper - x, x - lower))
    if change is None:
        return np.inf, x
    return length(norm, change), x + np.sign(w) * change


def untargeted(norm, weights, bias, x, label):
    """Distance of the nearest point that is not ``label``."""
    others = [c for c in range(weights.shape[1]) if c != label]
    return min(towards(norm, weights, bias, x, label, c)[0] for c in others)


def farthest_target(norm, weights, bias, x, label):
    """``(target, distance)``: of the targets whose exact distance is known, the farthest."""
    known = []
    for c in range(weights.shape[1]):
        if c == label:
            continue
        distance, point = towards(norm, weights, bias, x, label, c)
        logits = point @ weights + bias
        if np.isfinite(distance) and logits[c] >= logits.max() - 1e-9:
            known.append((distance, c))
    distance, target = max(known)
    return target, distance
