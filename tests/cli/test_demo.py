"""The demo, cut short, in a process of its own with one device."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from advjax.cli import demo

SHORT = """
import sys
from advjax.cli import demo, main
demo.EPOCHS, demo.LINF_GRID, demo.L2_GRID = 1, (0.1, demo.EPS), (demo.L2_EPS,)
sys.exit(main(["demo", "--out", sys.argv[1], "--json"]))
"""


@pytest.mark.slow
def test_the_demo_writes_table_report_and_two_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "training Madry" in done.stderr and "attacking standard" in done.stderr
    found = json.loads(done.stdout)
    attacks = [(row["attack"], row["eps"]) for row in found["rows"]]
    assert attacks == [
        ("none (clean)", 0.0),
        *((name, eps) for name in ("FGSM L-inf", "PGD L-inf") for eps in (0.1, demo.EPS)),
        ("PGD L2", demo.L2_EPS),
    ]
    for row in found["rows"]:
        for kind in demo.NAMES:
            accuracy = row[kind]
            assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
            assert accuracy["total"] == 500
    page = Path(found["report"]).read_text()
    for part in ("original", "perturbation", "adversarial", "Robust accuracy", "Training"):
        assert part in page
    assert page.count("data:image/png;base64,") >= 2 * 3
    loaded = re.findall(r"""(?:src|href)=["']?([^"'\s>]*)""", page)
    assert all(address.startswith("data:") for address in loaded)
    for kind in demo.NAMES:
        assert (tmp_path / kind / "config.json").is_file()
    assert (tmp_path / "digit.png").is_file()
