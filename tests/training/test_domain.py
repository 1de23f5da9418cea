"""Several heads: the reversed gradient, DANN's schedules and its loss, several tasks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.defences import JumpReLU
from advjax.models import Classifier
from advjax.models.heads import Heads, reverse_gradient
from advjax.training import LinenApply
from advjax.training.objectives.domain import DANN, MultiTask, dann_factor, dann_learning_rate

RNG = np.random.default_rng(0)
X = RNG.uniform(0, 1, (4, 4, 4, 1)).astype(np.float32)
U = RNG.uniform(0, 1, (8, 4, 4, 1)).astype(np.float32)
Y = np.asarray([0, 1, 2, 0], np.int32)
KEYS = jax.random.split(jax.random.key(0), 4)
BATCH = {"x": X, "y": Y, "unlabelled": U}
PARAMS = {
    name: RNG.normal(size=shape).astype(np.float32)
    for name, shape in {"features": (16, 5), "label": (5, 3), "domain": (5, 1)}.items()
}
STATS = {"hyper": {"reversal": np.float32(1)}}


def two_heads(params, stats, x, *, key=None, train=False):
    """Linear features and heads, the domain head's gradient reversed."""
    features = x.reshape(x.shape[0], -1) @ params["features"]
    reverse = reverse_gradient(features, stats["hyper"]["reversal"])
    return {"label": features @ params["label"], "domain": reverse @ params["domain"]}, stats


@jax.jit
def run(objective, params, stats, keys, batch):
    """``((loss, aux), gradient)``."""
    loss = lambda params: objective(keys, two_heads, params, stats, batch)
    return jax.value_and_grad(loss, has_aux=True)(params)


def test_the_gradient_comes_back_reversed():
    """Item 11, exactly, for a traced factor and under vmap."""
    upstream, x = RNG.normal(size=(2, 3, 4)).astype(np.float32)

    @jax.jit
    def back(factor):
        out, pull = jax.vjp(lambda x, f: reverse_gradient(x, f), x, factor)
        return out, *pull(upstream)

    out, to_x, to_factor = jax.jit(jax.vmap(back))(np.float32([0, 1, 0.3]))
    for i, factor in enumerate(np.asarray([0.0, 1.0, 0.3], np.float32)):
        np.testing.assert_array_equal(out[i], x)
        np.testing.assert_array_equal(to_x[i], -factor * upstream)
    np.testing.assert_array_equal(to_factor, np.zeros(3))


def test_the_schedules_of_dann():
    """Item 10."""
    progress = np.linspace(0, 1, 7)
    factor, rate = jax.jit(lambda p: (dann_factor(p), dann_learning_rate(p)))(progress)
    np.testing.assert_allclose(factor[::3], [0, 0.986614, 0.999909], atol=1e-5)
    np.testing.assert_allclose(factor, 2 / (1 + np.exp(-10 * progress)) - 1, atol=1e-6)
    np.testing.assert_allclose(rate[::6], [0.01, 0.001656], atol=1e-6)


def test_the_objective_of_a_step_has_the_steps_factor():
    objective = DANN(factor=0.5, total_steps=100)
    factor = jax.jit(lambda s: objective.at(s).factor)
    assert factor(0) == 0
    assert float(factor(50)) == pytest.approx(0.5 * 0.986614, abs=1e-5)
    assert DANN(factor=0.5).at(3).factor == 0.5


def test_loss_and_gradients_are_written_out():
    """Heads learn their losses; features the label's, less the factor times the domain's."""
    factor, weight = 0.3, 0.7
    (loss, aux), grad = run(DANN(factor=factor, weight=weight), PARAMS, STATS, KEYS, BATCH)

    def parts(params):
        answers = lambda x: two_heads(params, STATS, x)[0]
        of = lambda x: x.reshape(len(x), -1) @ params["features"] @ params["domain"]
        label = -jnp.mean(jax.nn.log_softmax(answers(X)["label"])[jnp.arange(4), Y])
        source, target = jax.nn.sigmoid(of(X)), jax.nn.sigmoid(of(U))
        return label, -jnp.mean(jnp.log(1 - source)) - jnp.mean(jnp.log(target))

    (label, domain), slopes = jax.jit(lambda p: (parts(p), jax.jacrev(parts)(p)))(PARAMS)
    assert float(loss) == pytest.approx(float(label + weight * domain), rel=1e-5)
    assert float(aux.metrics["domain_loss"]) == pytest.approx(float(domain), rel=1e-5)
    of_label, of_domain = jax.device_get(slopes)
    expected = {k: of_label[k] + weight * of_domain[k] for k in PARAMS}
    expected["features"] = of_label["features"] - factor * weight * of_domain["features"]
    chex.assert_trees_all_close(grad, expected, atol=1e-5)
    assert float(aux.stats["hyper"]["reversal"]) == pytest.approx(factor)


@pytest.fixture(scope="module")
def digits():
    """``(network, variables)`` of a small network with three heads."""
    network = Heads(
        classes=3, filters=(2,), hidden=(6,), others=(("domain", (4, 1)), ("parity", (2,)))
    )
    shapes = jax.eval_shape(network.init, jax.random.key(0), X)
    return network, jax.tree.map(lambda s: np.float32(0.3 * RNG.normal(size=s.shape)), shapes)


def test_a_network_of_heads_answers_by_name_in_training_and_with_one_head_else(digits):
    network, variables = digits
    answer = lambda **v: Classifier(network.clone(**v), variables)(X)
    train, label, parity = jax.jit(
        lambda: (network.apply(variables, X, train=True), answer(), answer(answer="parity"))
    )()
    assert {name: out.shape for name, out in train.items()} == {
        "label": (4, 3), "domain": (4, 1), "parity": (4, 2)
    }  # fmt: skip
    np.testing.assert_allclose(label, train["label"], atol=1e-6)
    np.testing.assert_allclose(parity, train["parity"], atol=1e-6)
    assert list(variables["hyper"]) == ["domain_reverse"]
    with pytest.raises(ValueError, match="heads: given colour; taken are label, domain, parity"):
        jax.eval_shape(network.clone(answer="colour").apply, variables, X)


def test_dann_sets_the_factor_of_the_networks_layer(digits):
    network, variables = digits
    stats = {"hyper": variables["hyper"]}
    call = lambda f: jax.grad(
        lambda p: DANN(factor=f)(KEYS, LinenApply(network), p, stats, BATCH)[0]
    )(variables["params"])
    none, one, two = jax.jit(lambda: [call(f) for f in (0.0, 1.0, 2.0)])()
    for name in variables["params"]:
        a, b, c = (np.asarray(v[name]["kernel"]) for v in (none, one, two))
        if name.startswith("Conv"):
            assert np.abs(b - a).max() > 1e-4
            np.testing.assert_allclose(c - b, b - a, atol=1e-5)
        else:
            np.testing.assert_allclose(b, a, atol=1e-6)


def test_several_tasks_are_the_sum_of_their_losses(digits):
    network, variables = digits
    params, stats = variables["params"], {"hyper": variables["hyper"]}
    objective = MultiTask(weight=0.5, tables={"parity": (0, 1, 0)})
    apply = LinenApply(network)
    (loss, aux), heads = jax.jit(
        lambda p: (
            objective(KEYS, apply, p, stats, BATCH),
            network.apply(variables, X, train=True),
        )
    )(params)
    parity = np.asarray([0, 1, 0, 0])
    ce = lambda z, y: (np.log(np.exp(z).sum(axis=1)) - np.asarray(z)[np.arange(4), y]).mean()
    expected = ce(heads["label"], Y) + 0.5 * ce(heads["parity"], parity)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    right = (np.asarray(heads["parity"]).argmax(1) == parity).mean()
    assert float(aux.metrics["parity_accuracy"]) == pytest.approx(right)


def test_jump_relu_cuts_every_layer_of_a_network_of_heads(digits):
    network, variables = digits
    model = Classifier(network, variables)
    logits = jax.jit(lambda m: m(X))
    np.testing.assert_array_equal(logits(JumpReLU(model, 0.0)), logits(model))
    out = variables["params"]["label_out"]  # above every activation the last bias alone is left
    np.testing.assert_allclose(logits(JumpReLU(model, 1e9)), [out["bias"]] * 4, atol=1e-6)


def plain(params, stats, x, *, key=None, train=False):
    return x.reshape(x.shape[0], -1)[:, :3], stats


def shape_of(objective, apply, params, stats, batch=BATCH):
    return jax.eval_shape(lambda: objective(KEYS, apply, params, stats, batch))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: shape_of(DANN(), plain, {}, STATS),
            TypeError,
            "expected a mapping with the head label",
        ),
        (
            lambda: shape_of(DANN(), two_heads, PARAMS, STATS, {"x": X, "y": Y}),
            ValueError,
            "DANN: given a batch of x, y; expected unlabelled too",
        ),
        (
            lambda: shape_of(DANN(), two_heads, PARAMS, {}),
            ValueError,
            "without a variable named reversal",
        ),
        (
            lambda: shape_of(MultiTask(tables={"domain": (0, 1)}), two_heads, PARAMS, STATS),
            ValueError,
            "given 2 labels of domain; expected 3, one per class",
        ),
    ],
)
def test_what_they_do_not_take_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
