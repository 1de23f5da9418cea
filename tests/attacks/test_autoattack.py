"""AutoAttack is made of the parts of the authors' code, and leaves what the reference leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import EOT, L0, L1, L2, Linf, Restarts, WorstOf, cross_entropy
from advjax.attacks.apgd import APGD
from advjax.attacks.autoattack import STANDARD, AutoAttack, Version
from advjax.attacks.fab import FAB
from advjax.attacks.square import Square
from advjax.losses import dlr


def parts(attack):
    """What an ensemble is made of, as (class, count or rank, loss)."""
    found = []
    for part in attack.attacks:
        n = 1
        if isinstance(part, EOT):
            assert part.samples == 20
            part = part.attack
        if isinstance(part, Restarts):
            n, part = part.n, part.attack
        assert part.steps == (5000 if isinstance(part, Square) else 100)
        rank = getattr(part, "rank", None)
        found.append((type(part), n if rank is None else f"rank {rank:.0f}"))
        if isinstance(part, APGD) and rank is None:
            found[-1] += (part.loss,)
    return found


def ranks(kind, n):
    return [(kind, f"rank {rank}") for rank in range(1, n + 1)]


def test_the_versions_are_those_of_the_authors():
    """Croce & Hein 2020 and fra31/auto-attack: which attacks, how often, in which order."""
    square = [(Square, 1)]
    for ball in (Linf(0.3), L2(2.0)):
        attack = AutoAttack(ball=ball)
        expected = [(APGD, 1, cross_entropy), *ranks(APGD, 9), *ranks(FAB, 9), *square]
        assert parts(attack) == expected
        assert all(part.ball is ball for part in attack.attacks)
    attack = AutoAttack(ball=L1(10.0))
    expected = [(APGD, 5, cross_entropy), *ranks(APGD, 5), *ranks(FAB, 9), *square]
    assert parts(attack) == expected
    assert attack.attacks[0].attack.shrink and all(part.shrink for part in attack.attacks[1:6])
    attack = AutoAttack(ball=Linf(0.3), version="plus")
    fab = [(FAB, 1), (FAB, 4)]  # the first of the five starts at the image
    untargeted = [(APGD, 5, cross_entropy), (APGD, 5, dlr), *fab, *square]
    assert parts(attack) == [*untargeted, *ranks(APGD, 9), *ranks(FAB, 9)]
    assert attack.attacks[3].attack.random_start and not attack.attacks[2].random_start
    attack = AutoAttack(ball=Linf(0.3), version="rand")
    assert parts(attack) == [(APGD, 1, cross_entropy), (APGD, 1, dlr)]
    assert all(isinstance(part, EOT) for part in attack.attacks)


def test_the_versions_cannot_be_changed_by_accident():
    with pytest.raises(AttributeError):
        STANDARD.steps = 10


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"ball": Linf(0.3), "version": "fast"}, "'fast'.*'plus', 'rand', 'standard'"),
        ({"ball": L0(3)}, "Linf, L2 or L1"),
        ({"ball": Linf(0.3), "version": Version((("pgd", 1),))}, "'pgd'"),
    ],
)
def test_what_it_cannot_take_it_refuses(fields, words):
    with pytest.raises(ValueError, match=words):
        AutoAttack(**fields)


def test_it_attacks_a_model_of_two_classes(key):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(24, 2)), np.float32)
    model = jax.tree_util.Partial(two_classes, weights)
    x = jnp.asarray(rng.uniform(0.1, 0.9, size=(4, 4, 3, 2)), np.float32)
    y = jnp.argmax(model(x), axis=1)
    version = Version((("apgd-ce", 1), ("apgd-t", 2), ("fab-t", 2), ("square", 10)), steps=3)
    attack = AutoAttack(ball=Linf(0.02), version=version)
    assert len(attack.attacks) == 6
    record = attack.run(key, model, x, y)
    gap = np.abs(np.asarray(model(x) @ np.array([1.0, -1.0])))
    possible = gap < 0.02 * np.abs(np.asarray(weights[:, 0] - weights[:, 1])).sum()
    np.testing.assert_array_equal(record.success, possible)


def two_classes(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


@pytest.mark.optimised
def test_apgd_fools_what_the_reference_fools(lenet5, shared, key):
    """40 of 500 images, those that AutoAttack's own APGD-CE and APGD-T fool on a robust LeNet.

    Measured on all 500, which takes minutes: APGD-CE leaves 459 standing (theirs 460), with all
    targets 456 (theirs 454).
    """
    golden = shared / "golden" / "autoattack_lenet_adv_500.npz"
    if not golden.is_file():
        pytest.skip(f"needs the reference's results: no {golden}")
    left = np.load(golden)
    images = np.load(shared / "golden" / "mnist_test_500.npz")["image"]
    pick = np.flatnonzero(left["clean"] & ~left["after_apgd_t"])
    x = jnp.asarray(images.reshape(-1, 28, 28, 1)[pick] / np.float32(255))
    y = jnp.asarray(left["label"][pick])
    model = lenet5("adv")
    assert len(pick) == 40 and (jnp.argmax(model(x), axis=1) == y).all()
    attacks = AutoAttack(ball=Linf(0.3)).attacks[:3]  # APGD-CE and two targets
    record = WorstOf(attacks).run(key, model, x, y)
    np.testing.assert_array_equal(record.success, jnp.argmax(model(record.x_adv), axis=1) != y)
    assert (record.distance <= 0.3 + 1e-6).all()
    assert record.success.sum() >= 36, record.success.sum()
