"""Intervals and tests against hand values, simulation, and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from routelab.comparison.statistics.exact_tests import holm, sign_flip_p, smallest_sign_flip_p
from routelab.comparison.statistics.power import detectable_effect, detectable_shift, seeds_needed
from routelab.comparison.statistics.two_way import estimate_over_seeds
from routelab.core.intervals import (
    bca_interval,
    grouped_interval,
    mean_interval,
    ratio_interval,
)


def test_mean_interval_by_hand() -> None:
    # sd of 1, 2, 3 is 1; t(0.975, 2) = 4.302653.
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.n == 3
    assert found.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2.0 - found.low == pytest.approx(found.high - 2.0)
    assert found.as_dict() == {"mean": found.mean, "low": found.low, "high": found.high, "n": 3}


def test_mean_interval_of_one_none_and_not_finite() -> None:
    one = mean_interval([0.5])
    assert one.mean == 0.5
    assert one.n == 1
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = mean_interval([])
    assert none.n == 0
    assert math.isnan(none.mean)
    assert math.isnan(mean_interval([1.0, math.inf]).mean)
    with pytest.raises(ValueError, match="confidence"):
        mean_interval([1.0], confidence=95)


@pytest.mark.parametrize("n", [3, 8])
def test_t_interval_covers_95_percent(n: int) -> None:
    rng = np.random.default_rng(n)
    trials = 3000
    hits = 0
    for sample in rng.normal(1.5, 0.3, size=(trials, n)):
        found = mean_interval(sample.tolist())
        hits += found.low <= 1.5 <= found.high
    assert abs(hits / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize(("n", "smallest"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_sign_flip_minimum(n: int, smallest: float) -> None:
    assert smallest_sign_flip_p(n) == smallest
    assert sign_flip_p([0.1] * n) == smallest
    assert sign_flip_p([-0.1 * (i + 1) for i in range(n)]) == smallest


def test_sign_flip_by_hand() -> None:
    # The eight sums of +-1 +-2 +-3 are +-6 +-4 +-2 0 0: at least |1 + 2 - 3| = 0 all, at least |-1 + 2 + 3| = 4 four.
    assert sign_flip_p([1, 2, -3]) == 1.0
    assert sign_flip_p([-1, 2, 3]) == 0.5
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0
    assert math.isnan(sign_flip_p([]))


def test_sign_flip_beyond_enumeration_agrees_with_the_t_test() -> None:
    d = np.random.default_rng(3).normal(0.3, 1.0, size=40)
    assert sign_flip_p(d.tolist()) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert sign_flip_p(d.tolist()) == sign_flip_p(d.tolist())
    assert sign_flip_p([1.0] * 40) > 0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    mixed = holm([0.02, math.nan, 0.04])
    assert mixed[0] == pytest.approx(0.04)
    assert mixed[2] == pytest.approx(0.04)
    assert math.isnan(mixed[1])


def test_detectable_effect_gives_the_power_asked_for() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 5, 10):
        draws = rng.normal(0.2 * detectable_effect(n, power=0.8), 0.2, size=(20000, n))
        power = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05)
        assert power == pytest.approx(0.8, abs=0.015)


def test_detectable_effect_at_its_edges() -> None:
    # A published value: paired t, n = 10, alpha .05 two-sided, power .8 detects d = 0.996 (G*Power).
    assert detectable_effect(10) == pytest.approx(0.996, abs=0.001)
    # Many degrees of freedom: the quantiles of the normal distribution for .975 and .8 add up.
    assert detectable_shift(1e7) == pytest.approx(1.959964 + 0.841621, abs=1e-4)
    with pytest.raises(ValueError, match="power"):
        detectable_effect(2, power=80)


def test_equivalence_is_the_larger_of_two_one_sided_tests() -> None:
    found = estimate_over_seeds([0.004, -0.002, 0.001, 0.003, -0.001])
    assert found.p_equivalent(0.01) < 0.05 < found.p_equivalent(0.003)
    assert estimate_over_seeds([0.5, 0.5]).p_equivalent(0.1) == 1.0
    assert estimate_over_seeds([0.05, 0.05]).p_equivalent(0.1) == 0.0
    assert math.isnan(estimate_over_seeds([0.1]).p_equivalent(0.1))
    with pytest.raises(ValueError, match="margin"):
        found.p_equivalent(0)


def test_equivalence_is_wrong_at_most_as_often_as_it_says() -> None:
    """True difference exactly at the margin: equivalence must be claimed in at most 5% of all cases."""
    rng = np.random.default_rng(5)
    claims = np.mean([estimate_over_seeds(d).p_equivalent(0.1) < 0.05 for d in rng.normal(0.1, 0.05, size=(1500, 8))])
    assert claims <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


def t_test_bar(n: int) -> float:
    """Return the t^2 at which a two-sided t-test on n differences rejects at level .05."""
    return float(stats.t.ppf(0.975, n - 1) ** 2)


def test_seeds_needed_gives_the_power_asked_for() -> None:
    # G*Power: an effect of half a deviation takes 34 pairs, a whole one 10.
    for effect, n in ((0.5, 34), (1.0, 10)):
        d = stats.zscore(np.arange(6.0), ddof=1) + effect
        assert seeds_needed(d.tolist(), t_test_bar) == n
    assert seeds_needed([1.0, 1.0], t_test_bar) == 2
    assert seeds_needed([0.1, -0.1], t_test_bar) is None
    assert seeds_needed([0.3], t_test_bar) is None
    assert seeds_needed([1.0, -0.9999], t_test_bar) is None
    # Effects at which statsmodels' solver gives up.
    d = stats.zscore(np.arange(6.0), ddof=1) + 8.0
    assert seeds_needed(d.tolist(), t_test_bar) == 3


def test_bca_interval_covers_from_ten_on() -> None:
    assert bca_interval(range(9)) is None
    assert bca_interval([1.0] * 12) is None
    rng = np.random.default_rng(6)
    hits = 0
    for sample in rng.exponential(1.0, size=(150, 20)):
        found = bca_interval(sample.tolist())
        assert found is not None
        hits += found.low <= 1.0 <= found.high
    assert 0.85 <= hits / 150 <= 0.99


def test_the_interval_of_a_ratio_is_over_groups():
    """Sums 2, 3, 1 over sizes 1, 2, 1: 6 / 4, and deviations (1/2, 0, -1/2) over the mean size of 4/3."""
    found = ratio_interval([2, 3, 1, 0], [1, 2, 1, 0])
    assert (found.mean, found.n) == (pytest.approx(1.5), 3), "a group of no size is none"
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 2) * 0.375 / math.sqrt(3))
    assert ratio_interval([1, 2, 4], [1, 1, 1]) == mean_interval([1, 2, 4])
    assert math.isnan(ratio_interval([0], [0]).mean)


def test_values_of_a_group_hang_together():
    """Groups of ten equal values each tell no more than one of each."""
    values, group = np.repeat([1.0, 2.0, 4.0, 8.0], 10), np.repeat([7, 3, 9, 1], 10)
    once, found = mean_interval([1, 2, 4, 8]), grouped_interval(values, group)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((once.mean, once.low, once.high, 4))
