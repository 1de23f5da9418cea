"""The zoo: parameter counts, shapes, names, models as pytrees."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models import Classifier, PerExample, create, describe, init


def shapes(name, image, **fields):
    module = create(name, **fields)
    return jax.eval_shape(lambda k: module.init(k, jnp.zeros((1, *image))), jax.random.key(0))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


IMAGENET = {"stem": "imagenet", "classes": 1000}
COUNTS = [
    ("mnist_madry", (28, 28, 1), {}, 3_274_634),
    ("mnist_fast", (28, 28, 1), {}, 166_406),
    ("lenet5", (28, 28, 1), {}, 648_226),
    ("lecture_cnn", (28, 28, 1), {}, 93_322),
    ("mlp", (8, 8, 1), {"hidden": (32,)}, 64 * 32 + 32 + 32 * 10 + 10),
    ("mlp", (8, 8, 1), {"hidden": (32,), "batch_norm": True}, 2410 + 2 * 32 + 2 * 10),
    ("densenet48", (48, 48, 1), {}, 59_160),
    ("convnet48", (48, 48, 1), {}, 160 + 7 * 2320 + 144 * 50 + 50 + 102),
    ("preact_resnet18", (32, 32, 3), {"final_norm": False}, 11_171_146),
    ("preact_resnet18", (32, 32, 3), {}, 11_172_170),
    ("resnet18", (32, 32, 3), {}, 11_173_962),
    ("resnet18", (224, 224, 3), IMAGENET, 11_689_512),
    ("resnet34", (224, 224, 3), IMAGENET, 21_797_672),
    ("resnet50", (224, 224, 3), IMAGENET, 25_557_032),
    ("densenet_bc", (32, 32, 3), {}, 769_162),
    ("densenet121", (224, 224, 3), IMAGENET, 7_978_856),
]


@pytest.mark.parametrize("name, image, fields, expected", COUNTS)
def test_parameter_count_is_the_published_one(name, image, fields, expected):
    assert count(shapes(name, image, **fields)["params"]) == expected


def test_lecture_diagram_network_adds_up_block_by_block():
    params = shapes("densenet48", (48, 48, 1))["params"]
    sizes = [count(params[f"_Convolution_{i}"]) for i in range(12)]
    assert [sum(sizes[i : i + 3]) for i in range(0, 12, 3)] == [3712, 13632, 13632, 13632]
    assert count(params["Dense_0"]) + count(params["Dense_1"]) == 14552


def test_gender_network_fields_change_what_they_name():
    base = {"blocks": 2, "convs_per_block": 3, "filters": 4, "dropout": 0.3, "batch_norm": True}
    dense = shapes("densenet48", (12, 16, 1), **base, out_dim=5)
    assert dense["params"]["_Convolution_3"]["Conv_0"]["kernel"].shape == (1, 1, 13, 5)
    assert len(jax.tree.leaves(dense["hyper"])) == 8 and len(dense["batch_stats"]) == 8
    plain = shapes("convnet48", (12, 16, 1), **base)
    assert plain["params"]["Dense_0"]["kernel"].shape == (3 * 4 * 4, 50)
    assert len(jax.tree.leaves(plain["hyper"])) == 6 and len(plain["batch_stats"]) == 6
    assert set(shapes("convnet48", (16, 18, 1))) == {"params"}
    with pytest.raises(ValueError, match=r"max_pool was given 1x2; expected at least its window"):
        shapes("convnet48", (12, 16, 1))


def test_initialisers_have_their_spread():
    def kernel(name):
        module = create("mlp", hidden=(200,), initialiser=name)
        return init(module, jax.random.key(0), (10, 10, 1))["params"]["Dense_0"]

    torch = kernel("torch")
    assert (
        0.099 < np.abs(torch["kernel"]).max() <= 0.1 and 0.09 < np.abs(torch["bias"]).max() <= 0.1
    )
    assert np.std(kernel("he")["kernel"]) == pytest.approx(0.02**0.5, rel=0.05)
    assert np.abs(kernel("glorot")["kernel"]).max() == pytest.approx((6 / 300) ** 0.5, rel=0.01)
    assert np.unique(kernel("truncated")["bias"]) == np.float32(0.1)
    with pytest.raises(ValueError, match="unknown initialiser 'xavier'; taken are torch"):
        kernel("xavier")


def test_perceptron_of_the_lecture_exercise_is_exact():
    w1 = np.array([[0.3, 0.4, 0.2], [0.3, 0.5, 0.2], [0.8, 1, -1]])
    w2 = np.array([[0, -1.2, 0.5], [0.9, 1, 0]])
    kernels = [w1.T, w2.T, np.array([[-1.0], [1]])]
    module = create("mlp", hidden=(3, 2), classes=1)
    params = {
        f"Dense_{i}": {"kernel": jnp.asarray(k, jnp.float32), "bias": jnp.zeros(k.shape[1])}
        for i, k in enumerate(kernels)
    }
    model = Classifier(module, {"params": params})
    assert float(model(jnp.array([[1.5, -1, 1.3]]))[0, 0]) == pytest.approx(0.489, abs=1e-6)


def test_perceptron_normalises_every_layer_before_its_relu_and_the_logits():
    module = create("mlp", hidden=(6,), classes=3, batch_norm=True)
    variables = init(module, jax.random.key(0), (5,))
    x = np.random.default_rng(0).random((8, 5), np.float32)
    found, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])

    def layer(i, h):
        h = h @ np.asarray(variables["params"][f"Dense_{i}"]["kernel"], np.float64)
        return (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)

    np.testing.assert_allclose(found, layer(1, np.maximum(layer(0, x), 0)), atol=1e-4)


def test_classifier_is_traced_once_for_every_checkpoint_of_equal_modules():
    traces = []

    @jax.jit
    def predict(model, x):
        traces.append(1)
        return model(x)

    outs = []
    for seed in range(3):
        module = create("mlp", hidden=[4], mean=[0.5], dtype=[jnp.float32, "float32"][seed % 2])
        outs.append(
            predict(
                Classifier(module, init(module, jax.random.key(seed), (2, 2, 1))),
                jnp.ones((1, 2, 2, 1)),
            )
        )
    assert len(traces) == 1
    assert not np.array_equal(outs[0], outs[1])


def test_init_takes_the_shape_of_an_example_or_of_a_batch():
    module, key = create("mlp", hidden=(3,)), jax.random.key(0)
    for shape, batch in (((2, 2, 1), (7, 2, 2, 1)), ((4,), (7, 4))):
        jax.tree.map(
            np.testing.assert_array_equal, init(module, key, shape), init(module, key, batch)
        )
    with pytest.raises(ValueError, match=r"\(H, W, C\)"):
        init(module, key, ())


def test_per_example_models_become_batch_models():
    model = PerExample(model=jax.tree_util.Partial(lambda w, image: image.sum((0, 1)) * w, 2.0))
    x = jnp.arange(24.0).reshape(2, 2, 2, 3)
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(model, x), 2 * x.sum((1, 2)))


def test_describe_refuses_other_modules():
    with pytest.raises(ValueError, match="Dense is not of the zoo"):
        describe(nn.Dense(3))


def test_wrong_names_and_fields_are_refused_with_the_near_ones():
    with pytest.raises(ValueError, match="unknown model 'resnet-18'; did you mean .*resnet18.*mlp"):
        create("resnet-18")
    with pytest.raises(ValueError, match="unknown field 'widht' of mnist_fast; did you mean width"):
        create("mnist_fast", widht=3)
    with pytest.raises(ValueError, match="classes=0"):
        create("mlp", classes=0)
    with pytest.raises(ValueError, match="dtype int32; taken are float32"):
        create("mlp", dtype="int32")
    with pytest.raises(ValueError, match="mean has 2 numbers, images 3 channels"):
        init(create("mlp", mean=(0.1, 0.2)), jax.random.key(0), (2, 2, 3))
    with pytest.raises(ValueError, match="unknown stem 'mnist'; taken are cifar, imagenet"):
        init(create("resnet18", stem="mnist"), jax.random.key(0), (8, 8, 3))
