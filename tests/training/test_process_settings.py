"""Settings of a new process: added where the user has none, never by an import."""

import os
import subprocess
import sys

from advjax.process_settings import settings


def test_nothing_the_user_has_set_is_changed():
    user = {
        "XLA_FLAGS": "--xla_backend_optimization_level=3 --xla_dump_to=here",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=2",
        "JAX_COMPILATION_CACHE_DIR": "/somewhere",
    }
    assert settings(user, "linux") == {}
    added = settings({"XLA_FLAGS": "--a=1", "GLIBC_TUNABLES": "b=2", "HOME": "/h"}, "linux")
    assert added["XLA_FLAGS"] == "--a=1 --xla_backend_optimization_level=2"
    assert added["GLIBC_TUNABLES"] == "b=2:glibc.malloc.hugetlb=1"
    assert added["JAX_COMPILATION_CACHE_DIR"] == "/h/.cache/advjax/compiled"
    assert "GLIBC_TUNABLES" not in settings({}, "darwin")


def test_a_command_starts_itself_again_once_with_the_settings(tmp_path):
    program = (
        "import os, sys; from advjax.process_settings import ensure; ensure();"
        "print(os.getpid(), os.environ['XLA_FLAGS'], 'jax' in sys.modules, sys.argv[1:])"
    )
    env = {n: v for n, v in os.environ.items() if n not in ("XLA_FLAGS", "GLIBC_TUNABLES")}
    env |= {"XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, "a b"], env=env, stdout=subprocess.PIPE, text=True
    )
    out, _ = process.communicate(timeout=60)
    assert out.split() == [
        str(process.pid), "--xla_backend_optimization_level=2", "False", "['a", "b']",
    ]  # fmt: skip
    assert oct((tmp_path / "advjax" / "compiled").stat().st_mode)[-3:] == "700"


def test_importing_the_library_changes_no_environment():
    program = "import os; a = dict(os.environ); import advjax.training; print(os.environ == a)"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "True"
