"""Memory predicted from shapes against what the compiler says that it allocates."""

import jax
import numpy as np
import optax
import pytest

from advjax import FreeAT, Linf, Madry, create
from advjax.attacks import PGD
from advjax.data import Dataset
from advjax.training import Standard, Training
from advjax.training.memory import available_bytes, predicted_bytes
from advjax.training.parallel import place, positions, replicate
from advjax.training.spec import root_keys

PGD_2 = PGD(ball=Linf(0.1), step_size=0.05, steps=2)


def faces(**changes):
    x = np.zeros((512, 48, 48, 1), np.uint8)
    data = Dataset(x, np.arange(512) % 2, classes=("a", "b"))
    fields = dict(
        module=create("convnet48", dropout=0.1, filters=8), objective=Standard(),
        optimizer=optax.adam(1e-3), train=data, steps=10, batch_size=32,
    )  # fmt: skip
    return Training(**{**fields, **changes})


def compiled_bytes(training):
    """Arguments and temporaries of the compiled step."""
    devices = jax.local_devices()[:1]
    step = training.step()
    init_key, key, _ = root_keys(training.seed)
    state = place(training.first_state(key, init_key), devices)
    put = lambda tree: replicate(tree, devices)
    arguments = (
        state, positions(training.batch_size, devices), put(training.full_objective),
        put(training.arrays()),
    )  # fmt: skip
    mapped = jax.pmap(
        step, axis_name="batch", in_axes=(None, 0, None, None), out_axes=None,
        devices=devices, donate_argnums=(0,),
    )  # fmt: skip
    found = mapped.lower(*arguments).compile().memory_analysis()
    return found.argument_size_in_bytes + found.temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "most"),
    [
        (faces(), 1.2),
        (faces(module=create("densenet48", dropout=0.3, filters=8)), 1.2),
        (faces(module=create("densenet48", filters=4, convs_per_block=4), batch_size=64), 1.2),
        (faces(objective=Madry(PGD_2)), 1.2),
        # The compiler works out the normalised values twice instead of keeping them.
        (faces(module=create("convnet48", batch_norm=True, filters=8)), 1.7),
    ],
    ids=["plain", "dense", "deep", "robust", "batch norm"],
)
def test_it_is_near_what_the_compiler_allocates(training, most):
    assert 0.85 < predicted_bytes(training) / compiled_bytes(training) < most


def test_it_grows_as_concatenation_does():
    """Dense blocks keep every concatenation: twice the convolutions, more than twice the memory."""
    deep = [
        predicted_bytes(faces(module=create("densenet48", filters=16, convs_per_block=n)))
        for n in (5, 10, 20)
    ]
    assert deep[1] > 2 * deep[0] and deep[2] > 2.5 * deep[1]


def test_devices_share_the_batch():
    one, four = predicted_bytes(faces()), predicted_bytes(faces(), devices=4)
    assert one / 4 < four < one / 2


def test_every_kind_of_batch_has_shapes():
    unlabelled = faces().train
    neighbours = (np.zeros((512, 2), np.int32), np.ones((512, 2), np.float32))
    plain = predicted_bytes(faces())
    for more in (
        dict(unlabelled=unlabelled),
        dict(neighbours=neighbours),
        dict(objective=FreeAT(ball=Linf(0.1))),
    ):
        assert predicted_bytes(faces(**more)) > 0.9 * plain
    assert available_bytes(jax.local_devices()[0]) > 1e8
