"""A finished small run that several tests read."""

import pytest
from small_runs import digits_training, one_device

from advjax.training import fit


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """``(result, events)`` of a run; read only."""
    events = []
    folder = tmp_path_factory.mktemp("runs") / "finished"
    source = folder.parent / "my_experiment.py"
    source.write_text("'''A claim.'''\n")
    result = fit(
        digits_training(), folder, config={"steps": 30}, source=source, devices=one_device(),
        progress=events.append,
    )  # fmt: skip
    return result, events
