import math

import numpy as np
import pytest
from scipy import stats

from advjax.evaluation import Accuracy, clopper_pearson, wilson

INTERVALS = pytest.mark.parametrize(
    ("interval", "method"), [(wilson, "wilson"), (clopper_pearson, "exact")]
)


@INTERVALS
@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (9850, 10000)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_intervals_equal_scipys(interval, method, k, n, level):
    want = stats.binomtest(k, n).proportion_ci(level, method)
    np.testing.assert_allclose(interval(k, n, level), want, rtol=1e-7, atol=1e-12)


@INTERVALS
def test_intervals_cover_as_often_as_they_say(interval, method):
    for n, p in ((30, 0.9), (100, 0.5), (500, 0.02)):
        k = np.arange(n + 1)
        inside = [low <= p <= high for low, high in (interval(int(i), n) for i in k)]
        coverage = stats.binom.pmf(k, n, p) @ inside
        assert coverage > (0.95 if method == "exact" else 0.92)


@INTERVALS
def test_intervals_are_within_0_and_1_and_mirror(interval, method):
    assert interval(0, 0) == (0.0, 1.0) if method == "wilson" else True
    for k in range(8):
        low, high = interval(k, 7)
        other_low, other_high = interval(7 - k, 7)
        assert 0 <= low <= k / 7 <= high <= 1
        assert math.isclose(low, 1 - other_high, abs_tol=1e-12) and math.isclose(
            high, 1 - other_low, abs_tol=1e-12
        )


@INTERVALS
@pytest.mark.parametrize(
    ("args", "message"),
    [((3, 2), "given 3 of 2"), ((-1, 2), "given -1 of 2"), ((1, 2, 95), "given level=95")],
)
def test_impossible_counts_are_refused(interval, method, args, message):
    with pytest.raises(ValueError, match=message):
        interval(*args)


def test_an_accuracy_says_its_share_and_interval():
    accuracy = Accuracy(9, 10)
    assert accuracy.value == 0.9 and (accuracy.low, accuracy.high) == wilson(9, 10)
    assert str(accuracy) == " 90.00 [59.58, 98.21]"
    assert set(accuracy.to_dict()) == {"correct", "total", "value", "low", "high"}
    with pytest.raises(ValueError, match="at least one example"):
        Accuracy(0, 0)
