"""Hall's transformation by hand, and intervals that allow for skewness."""

import math

import numpy as np
import pytest

from routelab.comparison.statistics.sequential import anytime_interval
from routelab.comparison.statistics.skewness import hall_inverse, hall_transform, widen_for_skewness
from routelab.core.intervals import Interval, mean_interval


def test_transform_by_hand():
    # 2 + 1.5 * 4 / 3 + 2.25 * 8 / 27 + 1.5 / 30 = 2 + 2 + .6667 + .05
    assert hall_transform(2.0, 1.5, 5) == pytest.approx(2 + 2 + 2 / 3 + 0.05)
    assert hall_transform(-1.0, 1.5, 5) == pytest.approx(-1 + 0.5 - 2.25 / 27 + 0.05)
    assert hall_transform(0.7, 0.0, 5) == 0.7


@pytest.mark.parametrize("skewness", [-1.5, -0.2, 1e-9, 0.0, 0.4, 1.5])
def test_inverse(skewness):
    for z in (-4.0, -0.3, 0.0, 0.8, 3.0):
        assert hall_inverse(hall_transform(z, skewness, 5), skewness, 5) == pytest.approx(z, abs=1e-8)


def test_interval_grows_towards_the_long_tail_only():
    d = [0.0, 0.1, 0.2, 0.3, 1.5]
    plain, wide = mean_interval(d), widen_for_skewness(mean_interval(d), d)
    assert wide.low == plain.low
    assert wide.high > plain.high + 0.5 * (plain.high - plain.mean)
    mirrored = widen_for_skewness(mean_interval([-value for value in d]), [-value for value in d])
    assert (mirrored.low, mirrored.high) == pytest.approx((-wide.high, -wide.low))
    # The new bound is where Hall's statistic meets the critical value of t.
    x = np.array(d)
    g = ((x - x.mean()) ** 3).mean() / x.var() ** 1.5
    z = (x.mean() - wide.high) / x.std(ddof=1)
    assert math.sqrt(5) * hall_transform(z, g, 5) == pytest.approx(-2.7764451)


def test_symmetric_values_and_edges_leave_the_interval_alone():
    symmetric = [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert widen_for_skewness(mean_interval(symmetric), symmetric).high == pytest.approx(mean_interval(symmetric).high)
    for values in ([], [1.0], [1.0, 2.0], [0.3] * 4):
        interval = mean_interval(values)
        assert widen_for_skewness(interval, values) is interval
    unbounded = anytime_interval([0.0, 1.0, 3.0], 0.001)
    assert unbounded == Interval(pytest.approx(4 / 3), -math.inf, math.inf, 3)
    assert widen_for_skewness(unbounded, [0.0, 1.0, 3.0]) is unbounded


def test_it_covers_the_mean_of_skewed_values_more_often():
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(4000, 8))
    intervals = [(mean_interval(row), row) for row in samples]
    plain = np.mean([interval.low <= 1 <= interval.high for interval, _ in intervals])
    wide = np.mean([result.low <= 1 <= result.high for result in (widen_for_skewness(*pair) for pair in intervals)])
    assert plain < 0.91
    assert wide == pytest.approx(0.939, abs=0.012)
