"""Every hook of an objective is declared, and users' callables without them go on working."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_net import BATCH, KEYS, W, linear
from small_runs import flat_linear, random_data, run_steps, step_training

from advjax.attacks import FGSM
from advjax.balls import Linf
from advjax.pytrees import pytree
from advjax.training import AWP, GradientPenalty, Madry, Standard
from advjax.training.plain import as_objective
from advjax.types import Aux, Objective

PARAMS = {"w": jnp.zeros((16, 4)), "b": jnp.zeros(4)}


def cross_entropy(key, apply, params, stats, batch):
    """A plain function."""
    logits, stats = apply(params, stats, batch["x"], key=key, train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
    return loss, Aux(stats=stats, metrics={})


@pytree
class Plain:
    """A pytree with nothing but its call."""

    scale: float = 1.0

    def __call__(self, *args):
        loss, aux = cross_entropy(*args)
        return self.scale * loss, aux


@pytree
class Hooked(Plain):
    """With hooks, though it says nothing of a contract."""

    replays = 3

    def at(self, step):
        return Hooked(scale=self.scale * (step + 1))


class Carrying(Plain):
    def start(self, shape):
        return jnp.zeros(shape)

    def advance(self, carry, gradient):
        return carry + 1


@pytree
class Subclass(Objective):
    """Of the contract, with its own call."""

    def __call__(self, *args):
        return cross_entropy(*args)


def trained(objective):
    training = step_training(
        random_data(), module=None, apply=flat_linear, params=PARAMS, objective=objective,
        optimizer=optax.sgd(0.1),
    )  # fmt: skip
    return run_steps(training, jax.local_devices()[:1], 2)[0].params["w"]


@pytest.mark.parametrize("objective", [cross_entropy, Plain(), Subclass()])
def test_any_callable_trains_as_the_objective_does(objective):
    np.testing.assert_allclose(trained(objective), trained(Standard()), atol=1e-7)


def test_the_defaults_of_every_hook():
    objective = as_objective(Plain())
    assert as_objective(objective) is objective and isinstance(objective, Objective)
    assert (objective.replays, objective.carries, objective.threat()) == (1, False, None)
    assert objective.at(jnp.int32(3)) is objective and objective.start((2, 3)) is None
    assert as_objective(Standard()).carries is False
    madry = as_objective(Madry(FGSM(ball=Linf(0.1))))
    assert float(madry.threat().eps) == pytest.approx(0.1)


def test_hooks_that_a_callable_has_are_kept():
    hooked = as_objective(Hooked())
    assert hooked.replays == 3 and not hooked.carries
    call = lambda objective: float(objective(KEYS, linear, W, {}, BATCH)[0])
    assert call(hooked.at(2)) == pytest.approx(3 * call(Standard()), rel=1e-6)
    carrying = as_objective(Carrying())
    assert carrying.carries and carrying.start((2,)).shape == (2,)
    np.testing.assert_array_equal(carrying.advance(jnp.zeros(2), None), [1, 1])


@pytest.mark.parametrize("inner", [Plain(), Subclass()])
def test_objectives_around_others_take_any_callable(inner):
    call = lambda objective: float(objective(KEYS, linear, W, {}, BATCH)[0])
    assert call(AWP(inner, gamma=0.0)) == pytest.approx(call(Standard()), rel=1e-6)
    assert call(GradientPenalty(inner, weight=0.0)) == pytest.approx(call(Standard()), rel=1e-6)


def test_what_is_no_objective_is_refused():
    with pytest.raises(TypeError, match="given int; expected an objective"):
        step_training(random_data(), objective=3)
    with pytest.raises(NotImplementedError, match="expected a method loss"):
        Objective()(KEYS, linear, W, {}, BATCH)
