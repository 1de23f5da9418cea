"""A few images of the comparison in compare.py, whose table is docs/parity.md."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
PEERS = ("torch", "foolbox", "torchattacks", "adv_lib")
# Deterministic or nearly so: with few images chance would decide the others.
QUICK = ("pgd linf", "apgd-ce linf", "deepfool l2", "ddn l2", "fmn linf", "fab linf")


@pytest.fixture(scope="module")
def comparison():
    if missing := [name for name in PEERS if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs the peers, see tests/parity/compare.py; not installed: {missing}")
    sys.path.insert(0, str(HERE))
    import compare

    return compare


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.filterwarnings("ignore")
def test_no_peer_is_stronger_on_a_few_images(comparison, shared, name):
    tensors = comparison.networks(shared)
    x, y = comparison.images(shared, 30)
    found = comparison.compare(name, tensors, x, y)
    results = {peer: o for peer, o in found.items() if isinstance(o, comparison.Outcome)}
    assert len(results) >= 2, found  # at least one peer ran
    mine, rest = results.pop("advjax"), results.values()
    # One image of 30, and 5 % of a median of 30: the full comparison is the strict one.
    assert mine.accuracy <= min(o.accuracy for o in rest) + 1 / 30 + 1e-6
    if np.isinf(float(comparison.ROWS[name].ball.eps)):
        assert mine.median <= 1.05 * min(o.median for o in rest)


def test_the_written_table_is_of_the_rows_there_are(comparison):
    results = json.loads(comparison.RESULTS.read_text())
    assert set(results["rows"]) <= set(comparison.ROWS)
    assert comparison.table(results) in comparison.TABLE.read_text()


def test_every_row_has_peers_and_the_other_network_the_same_ones(comparison):
    for name, row in comparison.ROWS.items():
        assert comparison.peers_of(name), name
        if name.endswith(" adv"):
            assert row.net == "adv" and comparison.ROWS[name.removesuffix(" adv")].net == "cln"


def test_a_target_that_is_not_reached_does_not_count(comparison):
    row, y = comparison.ROWS["jsma l0"], np.array([3, 3, 9])
    x, answer = np.zeros((3, 2, 2, 1), np.float32), np.array([4, 5, 0])
    x_adv = np.stack([x[0] + [[[1.0], [0]], [[0], [0]]], x[0] + 1, x[0] + 1]).astype(np.float32)
    found = comparison.judge(row, x, y, x_adv, answer, 0.0)
    assert np.isclose(found.accuracy, 1 / 3) and found.median == 4
