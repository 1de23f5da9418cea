"""Settings of a process that must stand before it starts; the command line uses them, a library
import never does.

Nothing here imports JAX, and nothing that the user has set is changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_DONE = "ADVJAX_PROCESS_SETTINGS"  # the mark that keeps a process from starting itself again


def settings(environment: Mapping[str, str], platform: str = sys.platform) -> dict[str, str]:
    """The variables to add to this environment, each with what the user has in it kept.

    * ``XLA_FLAGS``: the CPU compiler at level 2 compiles random draws 3 to 4 times faster and runs
      convolutions and matrix products as fast as level 3.
    * ``GLIBC_TUNABLES``: transparent huge pages for large arrays (Linux).
    * ``JAX_COMPILATION_CACHE_DIR`` and its thresholds: the next process does not compile again. The
      folder is the user's own, because whoever can write to it can run code here.
    """
    found = {}
    flags = environment.get("XLA_FLAGS", "")
    if "xla_backend_optimization_level" not in flags:
        found["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=2".strip()
    tunables = environment.get("GLIBC_TUNABLES", "")
    if platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        found["GLIBC_TUNABLES"] = f"{tunables}:glibc.malloc.hugetlb=1".lstrip(":")
    if "JAX_COMPILATION_CACHE_DIR" not in environment:
        cache = environment.get("XDG_CACHE_HOME") or os.path.join(
            environment.get("HOME", ""), ".cache"
        )
        if os.path.isabs(cache):
            found["JAX_COMPILATION_CACHE_DIR"] = os.path.join(cache, "advjax", "compiled")
            for name, value in (
                ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"),
                ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1"),
            ):
                if name not in environment:
                    found[name] = value
    return found


def ensure() -> None:
    """Starts this very command again with ``settings``, unless they stand already.

    The process is replaced, so its id, its signals and its exit code are those of the command. Call
    it first thing in a program, before anything has read input or started threads. It does
    nothing once JAX is imported, under a debugger, or where the command cannot be started again.
    """
    if os.environ.get(_DONE) or "jax" in sys.modules or sys.gettrace() is not None:
        return
    added = settings(os.environ)
    command = getattr(sys, "orig_argv", None)
    if not added or not command or not sys.executable:
        return
    folder = added.get("JAX_COMPILATION_CACHE_DIR")
    if folder is not None:
        try:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            added = {n: v for n, v in added.items() if not n.startswith("JAX_")}
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(
            sys.executable, [sys.executable, *command[1:]], {**os.environ, **added, _DONE: "1"}
        )
    except OSError:
        return
