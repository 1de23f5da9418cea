"""Cells on many machines: as tasks of Ray, or as jobs of Slurm.

The sweep's folder and the experiment file must be at the same path on every machine, such as on a
shared file system that knows file locks, and the same packages installed. A worker looks before it
runs a cell, and the sweep ends with what is missing.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import math
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from advjax.sweeps.cell import Task
from advjax.sweeps.executors import GRACE_S, Executor, worker_environment
from advjax.sweeps.outcome import SweepError
from advjax.sweeps.worker import Terms, run_job, run_task

_ASK_S = 30.0  # between questions to Slurm about jobs without a result
_LATE_S = 15.0  # for a result to appear in a shared folder after its job has ended


class _Cluster(Executor):
    """What both have: a limit, variables for the workers, and a token that tells this driver."""

    def __init__(self, workers: int | None, environment: Mapping[str, str] | None) -> None:
        super().__init__()
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers}; expected at least 1")
        self._workers, self._given = workers, environment or {}
        self._token, self._driver = "", Path(os.devnull)

    def __exit__(self, *exc: object) -> None:
        if self._token:  # workers end without it
            with contextlib.suppress(OSError):
                self._driver.unlink()
        self._end()
        self._token = ""
        super().__exit__(*exc)

    def start(self, folder: Path) -> None:
        """Gets ready; ``folder`` is the sweep's.

        Raises:
          SweepError: if the cluster does not answer, or has no room for a cell.
          ValueError: for a parameter that it does not know.
        """
        self._driver, self._token = folder / "workers" / "driver", secrets.token_hex(16)
        self._driver.parent.mkdir(exist_ok=True)
        self._driver.write_text(self._token)
        self._begin(self._driver.parent)

    def _added(self) -> dict[str, str]:
        """What a worker's environment has beside, or instead of, that of its machine."""
        found = worker_environment(self._given)
        ours = ("JAX_", "XLA_")
        return {n: v for n, v in found.items() if n.startswith(ours) or os.environ.get(n) != v}

    @abc.abstractmethod
    def _begin(self, logs: Path) -> None: ...

    @abc.abstractmethod
    def _end(self) -> None: ...


class Ray(_Cluster):
    """Cells as tasks of Ray, which places them; Ray keeps what they print.

    A worker or machine that is lost costs the progress of its cells since their last checkpoint.

    Args:
      address: of a cluster, such as ``"auto"`` or ``"ray://head:10001"``; None starts Ray on this
        machine for the sweep; it listens on the network, with Ray's token. A Ray that
        this process has joined before is used, and left as it is.
      workers: cells at a time; None: as many as there is room for.
      cpus: cores of a cell, above 0.
      gpus: of a cell, which sees no others; several share one for a fraction, for which
        ``environment`` should set ``XLA_PYTHON_CLIENT_MEM_FRACTION``.
      environment: variables for all cells, which also get this process's ``JAX_...`` and
        ``XLA_...``.

    Raises:
      ValueError: for numbers out of range, and without the package.
    """

    NAME = "ray"

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        *,
        cpus: float = 1,
        gpus: float = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if cpus <= 0 or gpus < 0:
            raise ValueError(f"cpus={cpus}, gpus={gpus}; expected cpus above 0 and gpus from 0")
        given = {"NPROC": str(math.ceil(cpus)), **(environment or {})}  # XLA's threads
        if not gpus:
            given.setdefault("CUDA_VISIBLE_DEVICES", "")
        super().__init__(workers, given)
        self._ray = _needed("ray", "Ray", "ray")
        self._address, self._cpus, self._gpus = address, cpus, gpus
        self._ours = False
        self._task: Any = None

    def _begin(self, logs: Path) -> None:
        variables = self._added()
        if self._address is not None and "PYTHONPATH" not in self._given:
            del variables["PYTHONPATH"]  # that of their machine stands
        if not self._ray.is_initialized():
            self._ours = True
            try:
                with _undisturbed():
                    self._check_reachable()
                    self._ray.init(**self._where(), log_to_driver=False, logging_level="error")
            except (OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
                raise SweepError(f"no Ray at {self._address or 'hand'}: {_line(error)}") from error
        # The driver runs a lost cell again, and knows when that is once too often: no max_retries.
        self._task = self._ray.remote(run_task).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=0,
            runtime_env={"env_vars": variables},
        )

    def _check_reachable(self) -> None:
        """Ray itself would try for minutes."""
        host, _, port = (self._address or "").removeprefix("ray://").rpartition(":")
        if host and port.isdigit():
            socket.create_connection((host, int(port)), 10.0).close()

    def _where(self) -> dict[str, Any]:
        if self._address is not None:
            return {"address": self._address}
        room = max(len(os.sched_getaffinity(0)) // self._cpus, 1)
        return {
            "address": "local",
            "num_cpus": math.ceil((self._workers or room) * self._cpus),
            "object_store_memory": 2**27,  # bytes; an answer is small
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }

    def _slots(self) -> int:
        if self._workers is not None:
            return self._workers
        has, needs = self._ray.cluster_resources(), {"CPU": self._cpus, "GPU": self._gpus}
        room = min(int(has.get(name, 0) / need) for name, need in needs.items() if need)
        if not room:
            raise SweepError(f"no room for a cell of {needs}; Ray has {has}")
        return room

    def _submit(self, task: Task, slot: str) -> Any:
        return self._task.remote(task, Terms.of(task, self._token))

    def _answers(self, seconds: float) -> list[tuple[Any, Mapping[str, Any]]]:
        done, left = self._ray.wait(list(self._running), timeout=seconds)
        if done and left:
            done += self._ray.wait(left, num_returns=len(left), timeout=0)[0]
        return [(future, self._answer(future)) for future in done]

    def _answer(self, future: Any) -> dict[str, Any]:
        wrong = self._ray.exceptions
        try:
            return self._ray.get(future)
        except (wrong.RuntimeEnvSetupError, wrong.TaskUnschedulableError) as error:
            return {"error": _line(error)}
        except wrong.RayError as error:
            return {"lost": _line(error)}

    def _end(self) -> None:
        left = list(self._running) if self._ray.is_initialized() else []
        for force, seconds in ((False, GRACE_S), (True, 5.0)):  # first, a training saves its state
            for future in left:
                self._ray.cancel(future, force=force)
            if left:
                left = self._ray.wait(left, num_returns=len(left), timeout=seconds)[1]
        if self._ours:
            with _undisturbed():
                self._ray.shutdown()
            self._ours = False


class Slurm(_Cluster):
    """Cells as jobs of Slurm, one each, by submitit; logs are in the sweep's ``workers`` folder.

    A job that fails, is killed or preempted costs the progress of its cell since its last
    checkpoint; one whose time is nearly up saves it and goes on as another job. Jobs end within
    seconds after their driver. ``sacct`` must answer, or killed jobs are not noticed.

    Args:
      workers: jobs at a time, queued ones included.
      cluster: ``"slurm"``, or ``"local"`` for jobs on this machine.
      environment: variables for all jobs, beside this process's.
      timeout_min: minutes of a job.
      parameters: those of submitit's ``update_parameters``: ``cpus_per_task=4``,
        ``gpus_per_node=1``, ``mem_gb=16``, ``slurm_partition="gpu"``, ...

    Raises:
      ValueError: for numbers out of range, and without the package.
    """

    NAME = "slurm"

    def __init__(
        self,
        workers: int = 16,
        *,
        cluster: str = "slurm",
        environment: Mapping[str, str] | None = None,
        timeout_min: int = 240,
        **parameters: Any,
    ) -> None:
        if cluster not in ("slurm", "local"):
            raise ValueError(f"cluster={cluster!r}; expected 'slurm' or 'local'")
        super().__init__(workers, environment)
        self._submitit = _needed("submitit", "Slurm", "slurm")
        for handler in logging.getLogger("submitit").handlers:  # it prints; the driver may not
            if getattr(handler, "stream", None) is sys.stdout:
                logging.getLogger("submitit").removeHandler(handler)
        more = {"no-requeue": True, **parameters.pop("slurm_additional_parameters", {})}
        self._parameters = {"name": "advjax", "slurm_additional_parameters": more, **parameters}
        self._parameters["timeout_min"] = timeout_min
        self._local = cluster == "local"
        self._executor: Any = None
        self._asked = time.monotonic()
        self._over: dict[Any, float] = {}  # since when

    def _begin(self, logs: Path) -> None:
        # In the command itself they stand before Python starts, whatever Slurm hands on.
        variables = [f"{name}={value}" for name, value in self._added().items()]
        cluster = "local" if self._local else "slurm"
        python = {f"{cluster}_python": shlex.join(["env", *variables, sys.executable])}
        try:
            self._executor = self._submitit.AutoExecutor(logs, cluster=cluster, **python)
            self._executor.update_parameters(**self._parameters)
        except RuntimeError as error:
            raise SweepError(_line(error)) from error
        except (NameError, AssertionError) as error:
            raise ValueError(_line(error)) from error

    def _slots(self) -> int:
        return self._workers or 1

    def _submit(self, task: Task, slot: str) -> Any:
        try:
            return self._executor.submit(run_job, task, Terms.of(task, self._token))
        except RuntimeError as error:
            raise SweepError(f"Slurm takes no job: {_line(error)}") from error

    def _answers(self, seconds: float) -> list[tuple[Any, Mapping[str, Any]]]:
        if not self._local and time.monotonic() > self._asked + _ASK_S:
            next(iter(self._running)).watcher.update()  # of all jobs
            self._asked = time.monotonic()
        done = [job for job in self._running if self._is_over(job)]
        if not done:
            time.sleep(min(seconds, 0.05) if self._local else seconds)
        return [(job, self._answer(job)) for job in done]

    def _is_over(self, job: Any) -> bool:
        """Whether its result is there, or will not come."""
        if not (job.done() or job.state.startswith("PREEMPTED")):
            return False
        since = self._over.setdefault(job, time.monotonic())
        late = 0 if self._local else _LATE_S
        return job.paths.result_pickle.exists() or time.monotonic() >= since + late

    def _answer(self, future: Any) -> dict[str, Any]:
        del self._over[future]
        log, state = future.paths.stderr, future.state
        if future.paths.result_pickle.exists():
            try:
                return future.result()
            except RuntimeError:
                return {"lost": f"an error, see {log}"}
        if not self._local:
            future.cancel(check=False)  # Slurm may be mistaken, and no other job shall run the cell
        if state == "FAILED" and not log.exists():
            return {"error": f"a job failed and wrote nothing; do all machines see {log.parent}?"}
        return {"lost": f"{state}, see {log}"}

    def _end(self) -> None:
        for job in self._running:
            if not self._local:
                job.cancel(check=False)  # by SIGTERM, and SIGKILL after a while
            elif not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)  # it passes it on
        until = time.monotonic() + GRACE_S
        for job in self._running if self._local else ():
            while not job.done() and time.monotonic() < until:
                time.sleep(0.05)
            job.cancel()


def _needed(module: str, what: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} needs {module}: pip install 'advjax[{extra}]'") from error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps the driver's signal handlers, which Ray replaces, and lets it start its programs, for
    which it forks with JAX loaded, but runs nothing then."""
    main = threading.current_thread() is threading.main_thread()
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
