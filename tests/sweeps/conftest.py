"""Experiment files for sweeps: one without any work, one that trains on the real digits."""

from pathlib import Path

import pytest

SYNTHETIC = '''"""A cell without work: numbers from numbers.

It writes down when it begins and ends, so that a test can see who ran it, and does as it is told.
"""
import dataclasses, os, time

from advjax.sweeps import choices


@dataclasses.dataclass(frozen=True)
class Config:
    lr: float = 0.1
    kind: str = "good"
    seed: int = 0
    sleep: float = 0.0


grid = choices(lr=[0.1, 0.2], seed=range(3))


def main(config, run_dir):
    with (run_dir / "log").open("a") as log:
        log.write(f"{os.getpid()} begins\\n")
    time.sleep(config.sleep)
    if config.kind == "bad":
        raise KeyError("no such thing")
    if config.kind == "diverged":
        from advjax.training import DivergedError

        raise DivergedError(812, "loss", float("nan"), "training stops here")
    if config.kind == "large":
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 31000000000 bytes.")
    if config.kind == "ends":
        os._exit(9)
    with (run_dir / "log").open("a") as log:
        log.write(f"{os.getpid()} ends\\n")
    return {"accuracy": 1 - config.lr * (1 + config.seed / 10), "nothing": float("nan"),
            "rows": [1, 2], "table": "for people"}
'''

DIGITS = '''"""A perceptron on the digits, attacked."""
import dataclasses

import optax

from advjax import FGSM, Linf, Standard, Training, create, load
from advjax.sweeps import choices


@dataclasses.dataclass(frozen=True)
class Config:
    lr: float = 0.01
    steps: int = 30
    seed: int = 0


grid = choices(lr=[0.01, 1e30], seed=[0, 1])


def build(config):
    return Training(
        module=create("mlp", hidden=(16,)), objective=Standard(), optimizer=optax.sgd(config.lr),
        train=load("digits", "train"), test=load("digits", "test"), steps=config.steps,
        batch_size=64, evaluate_every=10, evaluate_examples=100, seed=config.seed,
        attacks={"fgsm": FGSM(ball=Linf(0.05))}, log_every=5,
    )
'''


@pytest.fixture
def synthetic(tmp_path) -> Path:
    path = tmp_path / "synthetic.py"
    path.write_text(SYNTHETIC)
    return path


@pytest.fixture
def digits(tmp_path) -> Path:
    path = tmp_path / "on_digits.py"
    path.write_text(DIGITS)
    return path
