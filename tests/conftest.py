"""One strict session: eight virtual CPU devices, fast compiles, no network."""

import itertools
import os
import socket
from pathlib import Path
from typing import Any

# Before JAX is imported: these are read once.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    # Run time is the same as at the default level 3, compile time a third.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=2"
    ).strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Anything that asks for another machine fails at once."""

    def refuse(host, *args, **kwargs):
        raise OSError(f"a test asked the network for {host}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def own_draws(request, monkeypatch):
    """A module's ``RNG`` starts anew for each test: what one draws does not hang on which tests ran
    before it in the same worker."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(100))


_tests_run = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """Drops compiled programs before they are too many: each takes some hundred memory maps, of
    which a process on Linux may have 65,530, and the compilation that exceeds them crashes."""
    yield
    maps = Path("/proc/self/maps")
    if next(_tests_run) % 5 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """A folder with real data (``tfds/``) and published weights; skips loudly without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("ADVJAX_SHARED", default))
    if not (path / "tfds").is_dir():
        pytest.skip(f"needs real data: no {path}/tfds; set ADVJAX_SHARED to a folder that has it")
    return path


@pytest.fixture(scope="session")
def lenet5(shared):
    """``lenet5("cln")`` or ``lenet5("adv")``: AdverTorch's networks of MNIST, standard and
    adversarially trained; skips loudly without their weights."""
    from advjax import create, from_torch, load_torch

    def published(name: str) -> Any:
        path = shared / "weights" / f"mnist_lenet5_{name}.pt"
        if not path.is_file():
            pytest.skip(f"needs published weights: no {path}")
        return from_torch(create("lenet5"), load_torch(path), (28, 28, 1))

    return published


@pytest.fixture(scope="session")
def tiny():
    """A linear model that counts its traces: (model, weights, images [6, 4, 3, 2], labels)."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(24, 5)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.1, 0.9, size=(6, 4, 3, 2)), jnp.float32)
    model = jax.tree_util.Partial(linear, weights)
    return model, weights, x, jnp.argmax(model(x), axis=1).astype(jnp.int32)


_TRACES: list[None] = []


@pytest.fixture
def traces():
    """Grows by one whenever ``tiny``'s model is traced."""
    return _TRACES


def linear(weights, x):
    _TRACES.append(None)
    return x.reshape(x.shape[0], -1) @ weights
