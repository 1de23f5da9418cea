"""Small networks and runs that several tests share."""

import flax.linen as nn
import jax
import numpy as np
import optax

from advjax.attacks import FGSM
from advjax.balls import Linf
from advjax.data import Dataset, load
from advjax.models import create
from advjax.models.layers import Dropout, batch_norm
from advjax.training import Standard, Training
from advjax.training.parallel import gather, parallel, place, positions, replicate
from advjax.training.spec import root_keys

ATTACKS = {"fgsm": FGSM(ball=Linf(eps=0.05))}


def digits_training(**changes):
    """A few steps of a small perceptron on the real digits."""
    fields = dict(
        module=create("mlp", hidden=(16,)),
        objective=Standard(),
        optimizer=optax.adam(1e-2),
        train=load("digits", "train"),
        test=load("digits", "test"),
        steps=30,
        batch_size=64,
        evaluate_every=10,
        evaluate_examples=100,
        attacks=ATTACKS,
    )
    return Training(**{**fields, **changes})


def one_device():
    return jax.local_devices()[:1]


class Net(nn.Module):
    """BatchNorm and dropout in a few weights; it follows the zoo's contract on ``axis_name``."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(12)(x.reshape(x.shape[0], -1))
        x = nn.relu(batch_norm(x, train=train, axis_name=self.axis_name))
        x = Dropout(rate=0.3, axis_name=self.axis_name)(x, train=train)
        return nn.Dense(4)(x)


def random_data(n=40, shape=(4, 4, 1), seed=0):
    """Random images of four classes."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
    return Dataset(x=x, y=rng.integers(0, 4, n), classes=tuple("abcd"))


def step_training(data, **changes):
    """A training for ``run_steps``; SGD, because Adam hides scale."""
    fields = dict(
        module=Net(), objective=Standard(), optimizer=optax.sgd(1.0), train=data, steps=1,
        batch_size=16,
    )  # fmt: skip
    return Training(**{**fields, **changes})


def run_steps(training, devices, n=1):
    """The state after n steps, its carry in one piece, and the metrics of the last."""
    init_key, key, _ = root_keys(training.seed)
    state = place(training.first_state(key, init_key), devices)
    step = parallel(training.step(), devices)
    arguments = replicate((training.full_objective, training.arrays()), devices)
    for _ in range(n):
        state, metrics = step(state, positions(training.batch_size, devices), *arguments)
        jax.block_until_ready(state)
    return gather(state), metrics


def flat_linear(params, stats, x, *, key=None, train=False):
    """A linear model ``w``, ``b`` as an ``Apply``."""
    del key, train
    return x.reshape(x.shape[0], -1) @ params["w"] + params["b"][None], stats
