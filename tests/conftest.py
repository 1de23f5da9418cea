"""One strict session: eight virtual CPU devices, fast compiles, no network."""

import gc
import importlib.metadata
import itertools
import os
import platform
import re
import socket
import time
import zlib
from pathlib import Path
from typing import Any

# Before JAX is imported: these are read once.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what the tests do, so it is done with the least effort that leaves results
# alone; processes that a test starts inherit it. ADVJAX_TEST_COMPILER=default compiles as users do.
_DEFAULT_COMPILER = os.environ.get("ADVJAX_TEST_COMPILER") == "default"
if not _DEFAULT_COMPILER:
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    _FLAGS = "--xla_backend_optimization_level=2 --xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # unknown to later ones, which end
        _FLAGS += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from linear import linear  # noqa: E402


def pytest_configure(config):
    """Compiled programs are shared by this run's workers and by later runs; not by processes that
    tests start and kill, which may leave half a file."""
    if _DEFAULT_COMPILER:
        return
    cpu = Path("/proc/cpuinfo")
    flags = re.search(r"^flags.*", cpu.read_text() if cpu.exists() else "", re.MULTILINE)
    machine = zlib.crc32(f"{platform.processor()} {flags and flags[0]}".encode())
    folder = config.rootpath / ".jax_cache" / f"{machine:08x}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if folder.is_dir() and not hasattr(config, "workerinput"):
        for path in folder.iterdir():
            if time.time() - path.stat().st_mtime > 7 * 24 * 3600:
                path.unlink()


# In tests of these folders JAX refuses to broadcast over ranks and to mix types unasked; processes
# that they start are as users' are.
STRICT = ("contract", "data", "defences", "evaluation", "models", "training")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before any fixture: tests of ``STRICT`` folders are strict; those marked ``optimised``, whose
    arithmetic takes longer than their compiling, are compiled with optimisations. So is what they
    set up."""
    strict = item.path.parent.name in STRICT
    jax.config.update("jax_numpy_rank_promotion", "raise" if strict else "allow")
    jax.config.update("jax_numpy_dtype_promotion", "strict" if strict else "standard")
    if not _DEFAULT_COMPILER:
        optimised = item.get_closest_marker("optimised") is not None
        jax.config.update("jax_disable_most_optimizations", not optimised)


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
    """Drops compiled programs before they are too many: each takes dozens of memory maps, of which
    a process on Linux may have 65,530, and the compilation that exceeds them crashes.

    Those that stay are frozen: the collector looks at every object of every trace again and again,
    which made compiling half as slow again."""
    yield
    maps = Path("/proc/self/maps")
    if next(_tests_run) % 5 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        gc.unfreeze()
        jax.clear_caches()
    gc.freeze()


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
    """A linear model that counts its traces: (model, weights, images [8, 4, 3, 2], labels)."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(24, 5)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.1, 0.9, size=(8, 4, 3, 2)), jnp.float32)
    model = jax.tree_util.Partial(counted, weights)
    return model, weights, x, jnp.argmax(model(x), axis=1).astype(jnp.int32)


_TRACES: list[None] = []


@pytest.fixture
def traces():
    """Grows by one whenever ``tiny``'s model is traced."""
    return _TRACES


def counted(weights, x):
    _TRACES.append(None)
    return linear(weights, x)
