"""Ensemble adversarial training: whose images a batch is trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import flat_linear, random_data, run_steps, step_training

from advjax.attacks import FGSM
from advjax.balls import Linf
from advjax.models import Classifier, create, init
from advjax.training import Madry
from advjax.training.objectives.ensemble import EnsembleAdversarial
from advjax.types import Net

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(0.2, 0.8, (6, 4, 4, 1)), jnp.float32)
BATCH = {"x": X, "y": jnp.asarray(RNG.integers(0, 4, 6), jnp.int32)}
ATTACK = FGSM(ball=Linf(eps=0.1), best=False)


def weights(seed):
    rng = np.random.default_rng(seed)
    return {"w": jnp.asarray(rng.normal(size=(16, 4)), jnp.float32), "b": jnp.zeros(4)}


def linear_model(seed):
    return jax.tree_util.Partial(lambda p, x: flat_linear(p, {}, x)[0], weights(seed))


def other_net():
    module = create("mlp", hidden=(5,), classes=4)
    return Classifier(module, init(module, jax.random.key(0), (4, 4, 1)))


def test_a_batch_has_one_source_and_all_are_equally_likely():
    models = (linear_model(1), other_net())
    objective = EnsembleAdversarial(ATTACK, models=models)
    own = jax.tree_util.Partial(lambda p, x: flat_linear(p, {}, x)[0], weights(0))
    keys = jax.random.split(jax.random.key(0), 6)
    candidates = np.stack([ATTACK(keys, m, X, BATCH["y"]) for m in (own, *models)])
    assert len({c.tobytes() for c in candidates}) == 3
    craft = jax.jit(lambda k: objective.craft(Net(k, flat_linear, weights(0), {}), BATCH)["x_adv"])
    count = np.zeros(3, int)
    for i in range(150):
        x_adv = np.asarray(craft(jax.random.split(jax.random.key(i), 6)))
        hits = [np.allclose(x_adv, c, atol=1e-6) for c in candidates]
        assert sum(hits) == 1
        count[hits.index(True)] += 1
    assert (abs(count - 50) < 4 * np.sqrt(150 * 2 / 9)).all()


def test_the_loss_is_the_mixture_of_clean_and_attacked_images():
    objective = EnsembleAdversarial(ATTACK, models=(linear_model(0),))  # the network's own twin
    keys = jax.random.split(jax.random.key(3), 6)
    got = objective(keys, flat_linear, weights(0), {}, BATCH)
    expected = Madry(attack=ATTACK, clean_weight=0.5)(keys, flat_linear, weights(0), {}, BATCH)
    assert float(got[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    assert got[1].metrics.keys() == expected[1].metrics.keys()


def test_all_devices_draw_the_same_source():
    training = step_training(
        random_data(), module=None, apply=flat_linear, params=weights(0),
        objective=EnsembleAdversarial(ATTACK, models=(linear_model(1), other_net())),
        optimizer=optax.sgd(0.5),
    )  # fmt: skip
    (one, _), (eight, _) = (run_steps(training, jax.local_devices()[:d], n=4) for d in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, eight.params)


def test_other_models_are_another_run():
    def said(models):
        objective = EnsembleAdversarial(ATTACK, models=models)
        return step_training(random_data(), objective=objective).describe()["objective"]

    assert said((linear_model(1),)) == said((linear_model(1),))
    assert said((linear_model(1),)) != said((linear_model(2),))
    one, two = (said((Classifier(other_net().module, v),)) for v in (
        other_net().variables, jax.tree.map(lambda v: v + 1, other_net().variables)
    ))  # fmt: skip
    assert one != two and one["models"][0]["module"] == two["models"][0]["module"]
