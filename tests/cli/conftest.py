"""One tiny run on the digits, trained through the command line, for every test that needs a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENT = '''"""A small network learns digits.

The second paragraph is not shown.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import optax

from advjax import FGSM, Linf, Standard, Training, create, load


@dataclasses.dataclass(frozen=True)
class Config:
    epochs: int = 2
    """Passes over the training set."""
    lr: float = 3e-3
    width: int = 32
    data: str = "digits"
    data_dir: Path | None = None


def build(config):
    return Training(
        module=create("mlp", classes=10, hidden=(config.width,)),
        objective=Standard(),
        optimizer=optax.adam(config.lr),
        train=load(config.data, "train", config.data_dir),
        test=load("digits", "test"),
        evaluate_examples=64,
        epochs=config.epochs,
        batch_size=64,
        attacks={"fgsm": FGSM(ball=Linf(0.1))},
    )
'''


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="session")
def run(experiment: Path) -> Path:
    """Trained in a process of its own with one device: eight share two cores badly."""
    folder = experiment.parent / "run"
    done = subprocess.run(
        [sys.executable, "-m", "advjax", "train", str(experiment), "--run", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "HOME": str(experiment.parent)},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three test digits as PNG files."""
    from PIL import Image

    from advjax.data import load

    test = load("digits", "test")
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"digit{i}.png" for i in range(3)]
    for path, image in zip(paths, test.x, strict=False):
        Image.fromarray(np.asarray(image[..., 0])).save(path)
    return paths
