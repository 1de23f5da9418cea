"""A small run on real digits in a process of its own, slow enough to be killed: RUN_DIR SECONDS."""

import sys
import time

import jax
import optax

from advjax.attacks import FGSM
from advjax.balls import Linf
from advjax.data import load
from advjax.models import create
from advjax.training import Madry, Training, fit


def training():
    return Training(
        module=create("mlp", hidden=(16,)),
        objective=Madry(attack=FGSM(ball=Linf(eps=0.1), random_start=True, best=False)),
        optimizer=optax.adam(1e-2),
        train=load("digits", "train"),
        test=load("digits", "test"),
        epochs=6,
        batch_size=64,
        ema_decay=0.9,
        evaluate_every=25,
        evaluate_examples=100,
        checkpoint_every_s=0.1,
        log_every=7,
    )


def run(run_dir, seconds=0.0):
    pause = lambda event: event.kind == "step" and time.sleep(seconds)
    return fit(training(), run_dir, devices=jax.local_devices()[:1], progress=pause)


if __name__ == "__main__":
    run(sys.argv[1], float(sys.argv[2]))
