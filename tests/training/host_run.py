"""One process of a run: host_run.py FOLDER PORT PROCESSES PROCESS SECONDS; writes its weights.

``PROCESSES`` 1 is the run of one process that the others are compared with.
"""

import sys
import time
from pathlib import Path

import jax
import numpy as np

folder, port, processes, process, seconds = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 4 // int(processes))

import optax  # noqa: E402
from small_runs import Net, random_data  # noqa: E402

from advjax import FGSM, L2, PGD, Linf, Madry, Training, fit  # noqa: E402
from advjax.runs import hosts  # noqa: E402

if int(processes) > 1:
    hosts.join(f"127.0.0.1:{port}", int(processes), int(process), patience_s=30)
data = random_data(64)
training = Training(
    module=Net(),  # BatchNorm and dropout
    objective=Madry(PGD(ball=L2(0.1), step_size=0.05, steps=2)),
    optimizer=optax.sgd(0.05),  # Adam and signs turn rounding into whole steps
    train=data,
    test=data,
    attacks={"fgsm": FGSM(ball=Linf(0.02))},
    steps=60,
    batch_size=16,
    evaluate_every=20,
    log_every=5,
    checkpoint_every_s=0.1,
)


def progress(event):
    if event.kind == "step":
        time.sleep(float(seconds))


result = fit(training, folder, progress=progress)
leaves = [np.asarray(v) for v in jax.tree.leaves((result.last.model, result.best.model))]
np.savez(Path(folder).parent / f"weights-{processes}-{process}.npz", *leaves)
print(result.best.step, result.best.metrics)
