"""What every goal keeps to, judged once, and answers that are not finite; a new goal is a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import linear
from specs import comes_back

from advjax import (
    DDN,
    PGD,
    Goal,
    Linf,
    Misclassify,
    Square,
    Target,
    Targeted,
    Undetected,
    WithDetector,
    cross_entropy,
    dlr,
    evaluate,
    goals,
    margin,
    pytree,
)
from advjax.attacks.core.judging import judge

LOGITS = jnp.array([[3.0, 1.0, 0.0, -1.0], [0.5, 2.0, 0.0, 1.5], [0.0, 0.0, 1.0, 9.0]])
Y = jnp.array([0, 3, 2])


@pytree
class Within(Goal):
    """A goal of one's own, any pytree with a loss and a test: the two classes after the label."""

    reach: float = 2.0

    def loss(self, surrogate, outputs, y):
        near = self._near(outputs, y)
        others = jnp.where(near, -jnp.inf, outputs).max(axis=-1)
        return jnp.where(near, outputs, -jnp.inf).max(axis=-1) - others

    def reached(self, outputs, y):
        said, classes = jnp.argmax(outputs, axis=-1), outputs.shape[-1]
        return ((said - y) % classes >= 1) & (
            (said - y) % classes <= jnp.asarray(self.reach).astype(jnp.int32)
        )

    def _near(self, outputs, y):
        step = (jnp.arange(outputs.shape[-1])[None] - y[:, None]) % outputs.shape[-1]
        return (step >= 1) & (step <= jnp.asarray(self.reach).astype(jnp.int32))


def within(said, y, classes):
    return (said - y) % classes in (1, 2)


# name: (goal, whether a class said of K reaches it, by hand)
ROWS = {
    "misclassify": (Misclassify(), lambda said, y, classes: said != y),
    "target": (Target(), lambda said, y, classes: said == y),
    "undetected": (Undetected(), lambda said, y, classes: said not in (y, classes - 1)),
    "within": (Within(), within),
}
TABLE = pytest.mark.parametrize("name", ROWS)


def test_every_goal_has_a_row():
    public = {v for v in vars(goals).values() if isinstance(v, type) and issubclass(v, Goal)}
    assert public - {Goal} == {type(goal) for goal, _ in ROWS.values()} - {Within}
    assert [goal.targeted for goal, _ in ROWS.values()] == [False, True, False, False]


@TABLE
def test_the_margin_is_positive_where_the_goal_is_reached_and_nowhere_else(name):
    """Each example's own, under jit as without."""
    goal, by_hand = ROWS[name]
    logits = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    y = np.arange(200, dtype=np.int32) % 4  # the fifth class may mean "detected"
    reached, loss = jax.jit(lambda g: (g.reached(logits, y), g.loss(margin, logits, y)))(goal)
    assert reached.shape == loss.shape == (200,) and reached.dtype == bool
    expected = [by_hand(said, label, 5) for said, label in zip(logits.argmax(1), y, strict=True)]
    assert reached.tolist() == expected and 0 < sum(expected) < 200
    np.testing.assert_array_equal(loss > 0, reached)
    order = np.random.default_rng(1).permutation(200)[:7]
    np.testing.assert_array_equal(goal.reached(logits[order], y[order]), reached[order])
    np.testing.assert_allclose(goal.loss(margin, logits[order], y[order]), loss[order], rtol=1e-6)


@TABLE
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_an_answer_that_is_not_finite_reaches_nothing(bad, name):
    """Whatever the label: the argmax of NaN is the place of the NaN."""
    for place in range(3):
        for label in range(3):
            draws = jnp.zeros((1, 1, 3)).at[0, 0, place].set(bad)
            found = judge(ROWS[name][0], margin, draws, jnp.array([label]))
            assert not found.success.any() and found.invalid.all()


@TABLE
def test_it_comes_back_from_its_spec_and_so_does_an_attack_that_has_it(name):
    goal, _ = ROWS[name]
    comes_back(goal, trusted=(__name__,))
    comes_back(PGD(ball=Linf(0.1), goal=goal), trusted=(__name__,))


@TABLE
def test_an_attack_goes_there_and_says_where_it_is(name, key):
    """Of 12 pixels and five classes; ``y`` is what the model says, or the class after it."""
    goal, by_hand = ROWS[name]
    weights = jax.random.normal(jax.random.key(1), (12, 5))
    model = jax.tree_util.Partial(linear, weights)
    x = jax.random.uniform(jax.random.key(2), (8, 12))
    y = jnp.argmax(model(x), axis=1)
    if goal.targeted:
        y = (y + 1) % 5
    for attack in (PGD(ball=Linf(0.8), goal=goal), DDN(goal=goal)):
        out = attack.run(key, model, x, y)
        said = np.asarray(jnp.argmax(model(out.x_adv), axis=1))
        expected = [bool(by_hand(a, b, 5)) for a, b in zip(said, np.asarray(y), strict=True)]
        assert out.success.tolist() == expected
        assert out.success.sum() >= 7  # of 8: the box may hold one back


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr])
def test_the_goals_of_a_classifier(loss):
    np.testing.assert_array_equal(Misclassify().loss(loss, LOGITS, Y), loss(LOGITS, Y))
    np.testing.assert_array_equal(Target().loss(loss, LOGITS, Y), -loss(LOGITS, Y))
    assert Misclassify().reached(LOGITS, Y).tolist() == [False, True, True]
    assert Target().reached(LOGITS, Y).tolist() == [True, False, False]


def test_undetected_leaves_the_label_and_the_alarm():
    """The last class is the alarm; the margin is that of the best class that is neither."""
    y = jnp.array([0, 0, 2])
    assert Undetected().reached(LOGITS, y).tolist() == [False, True, False]
    np.testing.assert_allclose(Undetected().loss(margin, LOGITS, y), [1 - 3, 2 - 1.5, 0 - 9])


def test_undetected_by_gradient(key):
    """Only what raises no alarm counts; the alarm is where the first pixel is large."""

    def model(x):
        return jnp.stack([0.5 - x[:, 0] - x[:, 1], x[:, 0] + x[:, 1] - 0.5], axis=1)

    guarded = WithDetector(model, lambda x: x[:, 0], 0.3)
    x, y = jnp.full((4, 2), 0.2), jnp.zeros(4, jnp.int32)
    out = PGD(ball=Linf(0.25), steps=20, goal=Undetected()).run(key, guarded, x, y)
    assert out.success.all() and (out.x_adv[:, 0] < 0.3).all()
    np.testing.assert_array_equal(jnp.argmax(guarded(out.x_adv), axis=1), 1)
    blind = PGD(ball=Linf(0.25), steps=20).run(key, guarded, x, y)  # the alarm is a class to it
    assert (blind.x_adv[:, 0] > 0.3).all()


def breaks(x):
    """Two classes by the mean; NaN where a pixel is above .8."""
    mean = x.reshape(x.shape[0], -1).mean(axis=1)
    logits = jnp.stack([0.5 - mean, mean - 0.5], axis=1)
    return jnp.where(x.reshape(x.shape[0], -1).max(axis=1, keepdims=True) > 0.8, jnp.nan, logits)


@pytest.mark.parametrize("label", [0, 1])
def test_run_and_evaluate_call_it_invalid(label, key):
    x = jnp.full((8, 2, 2, 1), 0.3 if label == 0 else 0.7)
    y = jnp.full(8, label)
    push = PGD(ball=Linf(0.6), step_size=9.0, steps=1, random_start=False, best=False)
    toward = push if label == 0 else Targeted(push)
    out = toward.run(key, breaks, x, y)
    assert out.invalid.all() and not out.success.any()
    if label == 0:
        found = evaluate(breaks, (np.asarray(x), np.asarray(y)), {"a": push}, key=key)
        assert found.attacks["a"].invalid.all() and not found.attacks["a"].success.any()
        assert found.robust["a"].value == 0 == found.worst.value and found.clean.value == 1
        assert "8 invalid" in found.table()
        assert found.summary()["attacks"]["a"]["invalid"] == 8


@pytest.mark.parametrize("attack", [PGD(ball=Linf(0.6)), Square(ball=Linf(0.6), steps=50), DDN()])
def test_no_attack_stops_at_an_answer_that_is_not_finite(attack, key):
    x = jnp.full((8, 4, 4, 1), 0.35)
    out = attack.run(key, breaks, x, jnp.zeros(8, jnp.int32))
    answer = breaks(out.x_adv)
    np.testing.assert_array_equal(out.invalid, ~jnp.isfinite(answer).all(axis=1))
    np.testing.assert_array_equal(
        out.success, jnp.isfinite(answer[:, 0]) & (answer[:, 1] > answer[:, 0])
    )
