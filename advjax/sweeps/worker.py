"""A worker process: ``python -m advjax.sweeps.worker`` runs the cells that it reads.

One JSON object a line: a ``Task`` in, an ``Outcome`` out, or ``error`` where the sweep must end. It
ends when its input does, as when the driver is gone: a cell that is running then saves its state
first.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import sys
import threading

from advjax.sweeps.cell import Task, run_cell
from advjax.sweeps.outcome import SweepError


def main() -> None:
    # What the experiment prints goes to the log, never between the lines of the protocol.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            tasks.put(line)
        tasks.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    while (line := tasks.get()) is not None:
        busy.set()
        try:
            answer = dataclasses.asdict(run_cell(Task(**json.loads(line))))
        except SweepError as error:
            answer = {"error": str(error)}
        busy.clear()
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
