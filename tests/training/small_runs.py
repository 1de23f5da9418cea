"""Small networks and runs that several tests share."""

import flax.linen as nn
import jax
import optax

from advjax.attacks import FGSM
from advjax.balls import Linf
from advjax.data import load
from advjax.models import create
from advjax.models.layers import Dropout, batch_norm
from advjax.training import Standard, Training

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
