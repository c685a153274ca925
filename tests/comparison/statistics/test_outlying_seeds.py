"""Grubbs' threshold against published values and simulated normal data, and the seeds beyond it by hand."""

import math

import numpy as np
import pytest

from routelab.comparison.statistics.outlying_seeds import outlying_seeds, outlying_threshold


@pytest.mark.parametrize(
    ("n", "published"), [(3, 1.155), (4, 1.481), (5, 1.715), (6, 1.887), (8, 2.126), (10, 2.290), (20, 2.709)]
)
def test_threshold_is_the_published_value(n, published):
    """Grubbs & Beck (1972), Technometrics 14(4), table I: upper 2.5% of the one-sided statistic, three decimals."""
    assert outlying_threshold(n) == pytest.approx(published, abs=1e-3)


def test_threshold_by_hand():
    # With 2 df, P(T < t) = 1/2 + t / (2 sqrt(2 + t^2)). At 1 - .05 / 8, t / sqrt(2 + t^2) is therefore 1 - .05 / 4.
    assert outlying_threshold(4) == pytest.approx(3 / 2 * (1 - 0.05 / 4))
    assert outlying_threshold(5, 0.01) > outlying_threshold(5)
    assert outlying_threshold(2) == outlying_threshold(0) == math.inf
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="rate"):
            outlying_threshold(5, rate)


def test_seeds_by_hand():
    # 0, 0, 0, 1, x: mean (1 + x) / 5. For x = 10: 2.2, squares 3 * 4.84 + 1.44 + 60.84 = 76.8, sd 4.38, distance 7.8 / 4.38 = 1.78.
    assert outlying_seeds([0.0, 10.0, 0.0, 1.0, 0.0]) == [1]
    # For x = 5: 1.2, squares 3 * 1.44 + .04 + 14.44 = 18.8, sd 2.168, distance 3.8 / 2.168 = 1.753.
    assert outlying_seeds([0.0, 0.0, 0.0, 1.0, 5.0]) == [4]
    # For x = 3: .8, squares 3 * .64 + .04 + 4.84 = 6.8, sd 1.304, distance 2.2 / 1.304 = 1.687.
    assert outlying_seeds([0.0, 0.0, 0.0, 1.0, 3.0]) == []
    # Three seeds, gaps 1 and g: the ratio of the gaps decides, at 1.1543 it is 32.5 (max |d - median| / MAD).
    assert outlying_seeds([0.0, 1.0, 36.0]) == [2]
    assert outlying_seeds([0.0, 1.0, 30.0]) == []
    assert outlying_seeds([-36.0, -1.0, 0.0]) == [0]


def test_two_seeds_can_be_outlying():
    values = [0.01 * (-1) ** i for i in range(18)]
    assert outlying_seeds([5.0, *values, -5.0]) == [0, 19]


def test_nothing_is_outlying_without_spread():
    assert outlying_seeds([]) == outlying_seeds([1.0]) == outlying_seeds([0.0, 5.0]) == []
    assert outlying_seeds([0.0] * 5) == outlying_seeds([0.3] * 5) == []
    assert outlying_seeds([0.3, 0.3, 0.3, 0.3, 0.1 + 0.2]) == [], "values that differ by rounding are equal"
    assert outlying_seeds([0.0, 0.0, 0.0, 0.0, math.nan]) == outlying_seeds([0.0, 0.0, 0.0, 0.0, math.inf]) == []
    assert outlying_seeds([0.0, 0.0, 0.0, 0.0, 1.0]) == [4]


def test_neither_unit_nor_origin_matters():
    values = np.array([0.1, -0.2, 0.05, 4.0, 0.0, 0.15])
    assert outlying_seeds(values) == outlying_seeds(1e-3 * values + 7) == outlying_seeds(-values) == [3]


@pytest.mark.parametrize("n", [3, 5, 8, 20])
def test_normal_seeds_cross_the_threshold_at_the_rate(n):
    draws = 40_000
    d = np.random.default_rng(n).standard_normal((draws, n))
    distances = np.abs(d - d.mean(1, keepdims=True)).max(1) / d.std(1, ddof=1)
    crossed = distances > outlying_threshold(n)
    assert crossed.mean() == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / draws))
    assert [bool(outlying_seeds(row)) for row in d[:300]] == crossed[:300].tolist()
