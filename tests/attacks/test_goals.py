"""What an attack wants: the goals, judged once, and answers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    margin,
    pytree,
)
from advjax.attacks.core.judging import judge

LOGITS = jnp.array([[3.0, 1.0, 0.0, -1.0], [0.5, 2.0, 0.0, 1.5], [0.0, 0.0, 1.0, 9.0]])
Y = jnp.array([0, 3, 2])


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr])
def test_the_goals_of_a_classifier(loss):
    np.testing.assert_array_equal(Misclassify().loss(loss, LOGITS, Y), loss(LOGITS, Y))
    np.testing.assert_array_equal(Target().loss(loss, LOGITS, Y), -loss(LOGITS, Y))
    assert Misclassify().reached(LOGITS, Y).tolist() == [False, True, True]
    assert Target().reached(LOGITS, Y).tolist() == [True, False, False]
    assert Target.targeted and not Misclassify.targeted and not Undetected.targeted


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


def test_a_goal_of_ones_own(key):
    """Any pytree with a loss and a test: here the two classes after the label."""

    @pytree
    class Within(Goal):
        reach: float = 2.0

        def loss(self, surrogate, outputs, y):
            near = self._near(outputs, y)
            others = jnp.where(near, -jnp.inf, outputs).max(axis=-1)
            return jnp.where(near, outputs, -jnp.inf).max(axis=-1) - others

        def reached(self, outputs, y):
            said = jnp.argmax(outputs, axis=-1)
            step = ((said - y) % 5).astype(jnp.float32)
            return (step >= 1) & (step <= self.reach)

        def _near(self, outputs, y):
            step = (jnp.arange(outputs.shape[-1])[None] - y[:, None]) % outputs.shape[-1]
            return (step >= 1) & (step.astype(jnp.float32) <= self.reach)

    weights = jax.random.normal(jax.random.key(1), (12, 5))
    model = jax.tree_util.Partial(lambda w, x: x @ w, weights)
    x = jax.random.uniform(jax.random.key(2), (8, 12))
    y = jnp.argmax(model(x), axis=1)
    for attack in (PGD(ball=Linf(0.8), goal=Within()), DDN(goal=Within())):
        out = attack.run(key, model, x, y)
        step = (jnp.argmax(model(out.x_adv), axis=1) - y) % 5
        np.testing.assert_array_equal(out.success, (step >= 1) & (step <= 2))
        assert out.success.sum() >= 7  # of 8: the box may hold one back


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("goal", [Misclassify(), Target()])
def test_an_answer_that_is_not_finite_reaches_nothing(bad, goal):
    """Whatever the label: the argmax of NaN is the place of the NaN."""
    for place in range(3):
        for label in range(3):
            draws = jnp.zeros((1, 1, 3)).at[0, 0, place].set(bad)
            found = judge(goal, margin, draws, jnp.array([label]))
            assert not found.success.any() and found.invalid.all()


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
