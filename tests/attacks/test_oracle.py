"""Black-box attacks see what their oracle shows, and count every look exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import L2, Linf, Misclassify, Target, replace
from advjax.attacks.boundary import Boundary
from advjax.attacks.core.oracle import Labels, Scores
from advjax.attacks.hop_skip_jump import HopSkipJump
from advjax.attacks.nes import NES
from advjax.attacks.simba import SimBA
from advjax.attacks.spsa import SPSA

FIXED = {
    "nes": NES(ball=Linf(0.01), queries=64, samples=10),
    "spsa": SPSA(ball=Linf(0.01), queries=64, samples=10),
    "simba": SimBA(ball=L2(0.01), queries=40, step_size=0.01),
}
DECISION = {
    "boundary": Boundary(queries=40, check_every=2),
    "hop_skip_jump": HopSkipJump(queries=90, probes=20, chunk=8),
}
ALL = FIXED | DECISION


class Watched:
    """A linear model in NumPy, which JAX can neither see into nor differentiate."""

    def __init__(self, weights):
        self.weights, self.seen = np.asarray(weights), []

    def __call__(self, x):
        shape = jax.ShapeDtypeStruct((x.shape[0], self.weights.shape[1]), jnp.float32)
        return jax.pure_callback(self._answer, shape, x)

    def _answer(self, x):
        self.seen.append(np.array(x))
        return self.seen[-1].reshape(len(x), -1) @ self.weights


def shown(watched, x):
    """All images the model was asked about, and how many of them were not the clean one."""
    images = np.concatenate(watched.seen)
    return images, int((images != np.asarray(x)).any(axis=tuple(range(1, images.ndim))).sum())


@pytest.mark.parametrize("oracle", [Scores, Labels])
def test_no_gradient_comes_through(oracle, tiny):
    model, weights, x, y = tiny

    def total(weights, x):
        answers = oracle(jax.tree_util.Partial(model.func, weights))(x)
        return jnp.sum(answers.astype(jnp.float32) * x.sum())

    clean = jnp.sum(oracle(model)(x).astype(jnp.float32))
    by_weights, by_x = jax.grad(total, (0, 1))(weights, x)
    assert (by_weights == 0).all()
    np.testing.assert_allclose(by_x, jnp.full_like(x, clean), rtol=1e-5)  # the factor's alone
    watched = oracle(Watched(weights))
    answer, slope = jax.jvp(lambda x: watched(x).astype(jnp.float32), (x,), (x,))
    assert (slope == 0).all() and answer.shape[0] == x.shape[0]


def test_labels_are_classes_alone(tiny):
    model, _, x, y = tiny
    answer = Labels(model)(x)
    assert answer.shape == (8,) and answer.dtype == jnp.int32
    np.testing.assert_array_equal(answer, y)
    np.testing.assert_array_equal(Scores(model)(x), model(x))
    assert not Labels(model).adversarial(x, y, goal=Misclassify()).any()
    assert Labels(model).adversarial(x, y, goal=Target()).all()


def test_draws_of_a_randomised_model_are_a_vote():
    logits = jax.nn.one_hot(jnp.array([[0, 1], [0, 1], [2, 0], [1, 0], [1, 1]]), 3)  # [5, 2, 3]

    class Draws:
        stochastic = True

        def __call__(self, x, *, key):
            return logits + 0 * x[0, 0]

    jax.tree_util.register_static(Draws)
    labels = Labels(Draws())
    assert labels.stochastic and Scores(Draws()).stochastic
    x, y = jnp.zeros((2, 1)), jnp.array([0, 1])
    keys = jax.random.split(jax.random.key(0), 2)
    # Class 0 in two of five draws; class 1 in three of five.
    reached = lambda goal: labels.adversarial(x, y, goal=goal, key=keys)
    np.testing.assert_array_equal(reached(Misclassify()), [True, False])
    np.testing.assert_array_equal(reached(Target()), [False, True])


@pytest.mark.parametrize("name", ALL)
def test_every_query_is_counted_and_none_is_over_the_cap(name, tiny, key):
    """On a model that is no JAX program, one image; nothing off the mask is ever shown to it."""
    _, weights, x, y = tiny
    x, y = x[:1], y[:1]
    mask = np.ones(x.shape[1:], np.float32)
    mask[0, 0] = 0
    attack = replace(ALL[name], ball=replace(ALL[name].ball, mask=mask))
    watched = Watched(weights)
    record = attack.run(key, watched, x, y)
    images, changed = shown(watched, x)
    # The first look is at the clean image; the last, judging one is not where there is a success.
    judged = int((np.asarray(record.x_adv) != np.asarray(x)).any())
    assert int(record.forwards[0]) == changed + 1 + (1 - judged)
    left = attack.queries + 1 - int(record.forwards[0])
    at_once = {"nes": 11, "spsa": 11, "hop_skip_jump": 20 + 10}.get(name, 1)
    assert 0 <= left < at_once
    assert record.backwards[0] == 0
    if name != "hop_skip_jump":
        assert len(images) == int(record.forwards[0])
    np.testing.assert_array_equal(
        images[:, 0, 0], np.broadcast_to(x[0, 0, 0], images[:, 0, 0].shape)
    )
    # An image that is wrong already costs one look.
    watched.seen.clear()
    record = attack.run(key, watched, x, (y + 1) % 5)
    np.testing.assert_array_equal(record.x_adv, x)
    assert record.success[0] and record.forwards[0] == 2 and shown(watched, x)[1] == 0
    assert record.first_success[0] == 0 and record.distance[0] == 0


@pytest.mark.parametrize("name", DECISION)
def test_a_decision_based_attack_cannot_tell_logits_apart(name, tiny, key):
    """Monotonically changed logits have the same classes, hence the same result, bit by bit."""
    _, weights, x, y = tiny
    attack = replace(DECISION[name], queries=90)
    straight, bent = (jax.tree_util.Partial(squashed, weights, c) for c in (1e-4, 0.3))
    assert not np.allclose(straight(x), bent(x), atol=0.1)
    plain, other = attack.run(key, straight, x, y), attack.run(key, bent, x, y)
    for field in ("x_adv", "success", "distance", "forwards", "first_success"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(other, field))
    assert plain.success.all()


def squashed(weights, curve, x):
    return jnp.tanh(curve * (x.reshape(x.shape[0], -1) @ weights)) / curve


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NES(ball=Linf()), "NES: given Linf.*; expected a finite eps"),
        (
            lambda: NES(ball=Linf(0.1), samples=7),
            "NES: given samples=7; expected an even integer >= 2",
        ),
        (lambda: SPSA(ball=Linf(0.1), samples=8, chunk=6), "given chunk=6 for 8 samples"),
        (lambda: SPSA(ball=Linf(0.1), delta=0), "SPSA: given delta=0.0; expected numbers > 0"),
        (lambda: NES(ball=Linf(0.1), queries=0), "NES: given queries=0; expected an integer >= 1"),
        (lambda: SimBA(ball=Linf(0.1), basis="haar"), "given basis='haar'; expected one of"),
        (lambda: SimBA(ball=L2()), "SimBA: given L2.*; expected a finite eps"),
        (lambda: Boundary(ball=Linf()), r"Boundary: given ball=Linf.*; expected L2\(eps\)"),
        (lambda: Boundary(windows=(3,)), r"Boundary: given windows=\(3,\); expected two integers"),
        (lambda: HopSkipJump(ball=0.3), "HopSkipJump: given ball=.*; expected L2 or Linf"),
        (lambda: HopSkipJump(probes=0), "HopSkipJump: given probes=0; expected an integer >= 1"),
    ],
)
def test_fields_that_make_no_sense_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_images_that_do_not_fit_are_refused(tiny, key):
    model, _, x, y = tiny
    with pytest.raises(
        ValueError, match=r"start: given shape \(4, 3, 2\); expected \(8, 4, 3, 2\)"
    ):
        HopSkipJump(queries=10, start=x[0])(key, model, x, y)
    with pytest.raises(ValueError, match=r"expected \[B, H, W, C\] for basis='dct'"):
        SimBA(ball=L2(1.0), basis="dct")(key, model, x.reshape(8, 4, 6), y)
