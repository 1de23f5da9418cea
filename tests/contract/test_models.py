"""What every network of the zoo keeps to; a new name is one more row."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table

from advjax.defences.interval_bounds import bounds
from advjax.models import Classifier, create, describe, init, names
from advjax.spec import from_json, to_json

# name: (an image that is not square, fields that make it small, with what it has of randomness)
ROWS = {
    "mlp": ((5, 3, 2), {"hidden": (4,), "batch_norm": True, "dropout": 0.5}),
    "mnist_madry": ((10, 7, 1), {"filters": (2, 3), "width": 4}),
    "mnist_fast": ((10, 7, 1), {"filters": (2, 3), "width": 4}),
    "lenet5": ((10, 7, 1), {"filters": (2, 3), "width": 4}),
    "lecture_cnn": ((18, 20, 1), {"filters": (2, 3, 4), "width": 4, "dropout": 0.5}),
    "convnet48": ((8, 5, 1), {"blocks": 1, "filters": 2, "batch_norm": True, "dropout": 0.5}),
    "densenet48": ((8, 5, 1), {"blocks": 1, "filters": 2, "batch_norm": True, "dropout": 0.5}),
    "preact_resnet18": ((6, 8, 3), {"stages": (1, 1), "width": 2}),
    "resnet18": ((6, 8, 3), {"stages": (1, 1), "width": 2}),
    "resnet34": ((16, 24, 3), {"stages": (1, 1), "width": 2, "stem": "imagenet"}),
    "resnet50": ((6, 8, 3), {"stages": (1, 1), "width": 2}),
    "densenet_bc": ((6, 8, 3), {"blocks": (1, 1), "growth": 2, "dropout": 0.5}),
    "densenet121": ((16, 24, 3), {"blocks": (1, 1), "growth": 2, "stem": "imagenet"}),
}
# Of a class that has another row: CI takes their gradients.
SLOW = ("resnet34", "resnet50", "densenet121")


def rows(slow=()):
    return table.rows("model", sorted(ROWS), slow)


TABLE = pytest.mark.parametrize("name", rows())


def test_every_network_has_a_row():
    assert set(ROWS) == set(names())


def small(name, **changes):
    """``(module, variables, images)`` of three classes, pixels normalised."""
    image, fields = ROWS[name]
    fields = {**fields, "classes": 3, "mean": (0.5,), "std": (0.25,), "axis_name": "batch"}
    module = create(name, **fields, **changes)
    x = jnp.asarray(np.random.default_rng(0).random((4, *image)), jnp.float32)
    return module, init(module, jax.random.key(0), image), x


@jax.jit
def logits_of(model, x):
    return model(x)


@TABLE
def test_logits_are_float32_and_each_images_own(name):
    """Of a batch, of one image, and of bfloat16 inside."""
    module, variables, x = small(name)
    logits = logits_of(Classifier(module, variables), x)
    assert logits.shape == (4, 3) and logits.dtype == jnp.float32
    alone = logits_of(Classifier(module, variables), x[2:3])
    np.testing.assert_allclose(alone, logits[2:3], rtol=2e-5, atol=2e-5)
    half = logits_of(Classifier(small(name, dtype="bfloat16")[0], variables), x)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", rows(SLOW))
def test_parameters_are_data_that_vmap_maps_and_gradients_are_finite(name):
    module, variables, x = small(name)

    @jax.jit
    @jax.vmap
    def both(variables):
        value = lambda v, x: Classifier(module, v)(x)
        total = lambda params, x: jnp.sum(value({**variables, "params": params}, x)[:, 1])
        return value(variables, x), *jax.grad(total, (0, 1))(variables["params"], x)

    other = {**variables, "params": jax.tree.map(lambda v: 0.5 * v + 0.1, variables["params"])}
    pair = jax.tree.map(lambda *v: jnp.stack(v), variables, other)
    logits, to_params, to_x = both(pair)
    for i, one in enumerate((variables, other)):
        alone = logits_of(Classifier(module, one), x)
        np.testing.assert_allclose(logits[i], alone, rtol=1e-4, atol=1e-4)
    assert not np.allclose(logits[0], logits[1])
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((to_params, to_x)))
    assert to_x.shape == (2, *x.shape) and (to_x != 0).any(axis=(2, 3, 4)).all()


@TABLE
def test_training_over_an_axis_is_that_of_the_whole_batch(name):
    """BatchNorm takes its statistics, and Dropout its draws, over all devices."""
    module, variables, x = small(name)
    if "batch_stats" not in variables and "hyper" not in variables:
        assert set(variables) == {"params"}
        return
    collections = [c for c in variables if c != "params"]

    def train(x):
        rngs = {"dropout": jax.random.key(1)}
        return module.apply(variables, x, train=True, mutable=collections, rngs=rngs)

    run = jax.jit(jax.vmap(train, axis_name="batch"))
    whole, split = run(x[None]), run(x.reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(whole[0][0], split[0].reshape(4, 3), rtol=1e-3, atol=1e-4)
    for a, b in zip(jax.tree.leaves(whole[1]), jax.tree.leaves(split[1]), strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-5)


@TABLE
def test_describe_is_json_and_create_inverts_it(name):
    module = create(name, classes=7, mean=(0.1, 0.2, 0.3), dtype=jnp.bfloat16, **ROWS[name][1])
    told = json.loads(json.dumps(describe(module)))
    assert told["name"] in names()
    again = create(told["name"], **told["fields"])
    assert again == module and hash(again) == hash(module)
    assert describe(create(name)) == {"name": name, "fields": {}}
    assert from_json(to_json(module)) == module


PIXELS = {
    **dict.fromkeys(("convnet48", "densenet48"), (48, 48, 1)),
    **dict.fromkeys(("lecture_cnn", "lenet5", "mlp", "mnist_fast", "mnist_madry"), (28, 28, 1)),
}


@TABLE
def test_it_can_be_bounded(name):
    """Its program, that is: nothing is computed. DenseNets have fewer layers of the same kinds."""
    fields = {"blocks": (2, 2, 2)} if name in ("densenet_bc", "densenet121") else {}
    module, image = create(name, **fields), PIXELS.get(name, (32, 32, 3))
    shapes = jax.eval_shape(lambda k: init(module, k, image), jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    lower, upper = jax.eval_shape(lambda v, x: bounds(Classifier(module, v), x, x), shapes, pixels)
    assert lower.shape == upper.shape == (2, module.classes)
