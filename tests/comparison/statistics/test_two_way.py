"""Estimates over seeds and test units: hand-computed values, closed forms, coverage, and the pigeonhole bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interval_coverage import pigeonhole_standard_error
from scipy import stats

from routelab.comparison.statistics.contrast import Contrast
from routelab.comparison.statistics.two_way import (
    Estimate,
    estimate_over_seeds,
    estimate_over_units,
    estimate_two_way,
    influence_concentration,
)

# Worked by hand in docs/statistics.md.
TABLE = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]])


def test_hand_computed_additive_table():
    # Seed means 3 and 5, unit means 2, 3 and 7, mean 4, no error: MS_seed = 3 * 2 / 1, MS_unit = 2 * (4 + 1 + 9) / 2.
    result = estimate_two_way(TABLE)
    assert (result.mean, result.seeds, result.units) == (4.0, 2, 3)
    assert result.standard_error == pytest.approx(math.sqrt((6 + 14) / 6))
    assert result.seed_error == pytest.approx(math.sqrt(6 / 6))
    assert result.unit_error == pytest.approx(math.sqrt(14 / 6))
    assert result.degrees_of_freedom == pytest.approx(20**2 / (6**2 / 1 + 14**2 / 2))
    # Without error, no part of either standard error would shrink with the other sample.
    assert result.unit_floor == pytest.approx(result.unit_error)
    assert result.seed_floor == pytest.approx(result.seed_error)


def test_hand_computed_table_with_error():
    # Interaction +-1: means as above; MS_error = 4 * 1 / (1 * 2) from four cells of the first and the last unit.
    table = TABLE + np.array([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
    result = estimate_two_way(table)
    assert result.standard_error == pytest.approx(math.sqrt((6 + 14 - 2) / 6))
    assert result.unit_floor == pytest.approx(math.sqrt(12 / 6))
    assert result.seed_floor == pytest.approx(math.sqrt(4 / 6))
    assert result.degrees_of_freedom == pytest.approx(18**2 / (6**2 / 1 + 14**2 / 2 + 2**2 / 2))


def test_the_variance_is_never_below_the_larger_part():
    # Equal unit means: all variance over units is error, which alone would make the estimate 6 + 0 - 1.5 < 6.
    table = np.array([[2.0, 3.0, 4.0], [6.0, 5.0, 4.0]])
    result = estimate_two_way(table)
    assert result.standard_error == pytest.approx(result.seed_error)
    assert result.degrees_of_freedom == 1
    assert result.unit_error == 0
    assert result.unit_floor == 0
    turned = estimate_two_way(table.T)
    assert turned.standard_error == pytest.approx(turned.unit_error)
    assert turned.degrees_of_freedom == 1


def test_statsmodels_has_the_same_mean_squares():
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    table = np.random.default_rng(3).normal(size=(5, 12)) + np.arange(5)[:, None] + np.arange(12) ** 0.5
    long = pd.DataFrame({"d": table.ravel(), "s": np.repeat(range(5), 12), "u": np.tile(range(12), 5)})
    squares = anova_lm(ols("d ~ C(s) + C(u)", long).fit())["mean_sq"]
    result = estimate_two_way(table)
    assert result.seed_error**2 * 60 == pytest.approx(squares["C(s)"])
    assert result.unit_error**2 * 60 == pytest.approx(squares["C(u)"])
    assert result.standard_error**2 * 60 == pytest.approx(squares["C(s)"] + squares["C(u)"] - squares["Residual"])


def test_one_seed_or_one_unit_has_no_interval():
    for table in (np.ones((1, 5)), np.ones((4, 1)), np.full((3, 3), np.nan)):
        result = estimate_two_way(table)
        assert math.isnan(result.standard_error)
        assert math.isnan(result.p_value())
        assert math.isnan(result.interval().low)
        assert math.isnan(result.p_equivalent(0.1))
        assert math.isnan(result.supported_margin(0.05))


def test_identical_rows_are_judged_over_units_alone():
    row = np.random.default_rng(0).normal(size=40)
    both, units = estimate_two_way(np.tile(row, (5, 1))), estimate_over_units(row[None])
    assert both.standard_error == pytest.approx(units.standard_error)
    assert both.degrees_of_freedom == 39
    assert both.seed_error == pytest.approx(0, abs=1e-12)


def test_tests_and_intervals_agree_with_scipy():
    values = [0.3, -0.1, 0.4, 0.2, 0.25]
    result, expected = estimate_over_seeds(values), stats.ttest_1samp(values, 0.0)
    assert result.p_value() == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.9)
    assert (result.interval(0.9).low, result.interval(0.9).high) == pytest.approx((interval.low, interval.high))
    one_sided = [stats.ttest_1samp(values, -0.5, alternative="greater"), stats.ttest_1samp(values, 0.5, alternative="less")]
    assert result.p_equivalent(0.5) == pytest.approx(max(test.pvalue for test in one_sided))


def test_the_supported_margin_is_where_equivalence_begins():
    result = estimate_over_seeds([0.3, -0.1, 0.4, 0.2, 0.25])
    margin = result.supported_margin(0.05)
    assert result.p_equivalent(margin) == pytest.approx(0.05)
    assert result.p_equivalent(margin * 1.01) < 0.05 < result.p_equivalent(margin * 0.99)


def test_no_spread_leaves_no_width():
    result = Estimate(0.2, 0.0, 4.0, 5)
    assert result.p_value() == 0.0
    assert result.p_equivalent(0.3) == 0.0
    assert result.p_equivalent(0.1) == 1.0
    assert result.interval().low == result.interval().high == 0.2


@given(st.integers(2, 6), st.integers(2, 9), st.floats(-3, 3), st.floats(0.1, 10), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_estimates_move_and_scale_with_the_table(n, m, shift, scale, seed):
    table = np.random.default_rng(seed).normal(size=(n, m))
    one, other = estimate_two_way(table), estimate_two_way(scale * table + shift)
    assert other.mean == pytest.approx(scale * one.mean + shift, abs=1e-9)
    assert other.standard_error == pytest.approx(scale * one.standard_error)
    assert other.degrees_of_freedom == pytest.approx(one.degrees_of_freedom)
    assert one.standard_error >= max(one.seed_error, one.unit_error) * (1 - 1e-12)


@pytest.mark.parametrize("seeds", [3, 5, 20])
@pytest.mark.parametrize("part", [0.95, 0.5, 0.1])
def test_normal_coverage(seeds, part):
    # part: of the variance of the mean, from seeds; a tenth of the rest is error.
    units, draws, random = 60, 2000, np.random.default_rng(7)
    seed_sd, unit_sd, error_sd = (
        math.sqrt(part * seeds), math.sqrt(0.9 * (1 - part) * units), math.sqrt(0.1 * (1 - part) * seeds * units),
    )  # fmt: skip
    hits = 0
    for _ in range(draws):
        table = seed_sd * random.normal(size=(seeds, 1)) + unit_sd * random.normal(size=(1, units))
        interval = estimate_two_way(table + error_sd * random.normal(size=(seeds, units))).interval()
        hits += interval.low < 0 < interval.high
    # Three standard errors of the simulation are .014.
    assert 0.92 - 0.014 <= hits / draws <= 0.98 + 0.014


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize(("seed_sd", "unit_sd", "error_sd"), [(1, 1, 1), (0.3, 1, 1), (1, 0.3, 1), (0.1, 2, 0.5)])
def test_the_pigeonhole_bootstrap_agrees(seeds, seed_sd, unit_sd, error_sd):
    random, ratios = np.random.default_rng(seeds), []
    for draw in range(40):
        table = (
            seed_sd * random.normal(size=(seeds, 1))
            + unit_sd * random.normal(size=(1, 60))
            + error_sd * random.normal(size=(seeds, 60))
        )
        corrected = pigeonhole_standard_error(table, 400, draw) * math.sqrt(seeds / (seeds - 1))
        ratios.append(corrected / estimate_two_way(table).standard_error)
    assert 0.9 <= np.mean(ratios) <= 1.35


def test_concentration_of_the_influence():
    table = np.zeros((2, 40))
    table[:, :10] = 3.0
    table[:, 10:] = -1.0
    assert influence_concentration(table) == pytest.approx(90 / (90 + 30))
    assert influence_concentration(np.ones((3, 40))) == 0.0


@pytest.mark.parametrize("covered", [["seeds", "examples"], ["examples"]])
def test_a_metric_without_influences_keeps_its_mean(covered):
    """R^2 of units among which one alone varies has no value without that one, so it has no interval; it has a mean."""
    values = np.array([0.5, 0.7])
    found = Contrast(values, np.full((2, 3), math.nan)).estimate(covered)
    assert found.mean == pytest.approx(0.6)
    assert math.isnan(found.standard_error)
    assert math.isnan(found.interval().low)
    assert found.units == 3


@pytest.mark.parametrize(("part", "low", "high"), [(0.95, 0.86, 0.91), (0.5, 0.90, 0.95), (0.02, 0.93, 0.97)])
def test_coverage_of_two_seeds_is_what_the_verdict_says(part, low, high):
    units, draws, random = 60, 4000, np.random.default_rng(8)
    seed_sd, unit_sd, error_sd = math.sqrt(2 * part), math.sqrt(0.9 * (1 - part) * units), math.sqrt(0.2 * (1 - part) * units)
    hits = 0
    for _ in range(draws):
        table = seed_sd * random.normal(size=(2, 1)) + unit_sd * random.normal(size=(1, units))
        interval = estimate_two_way(table + error_sd * random.normal(size=(2, units))).interval()
        hits += interval.low < 0 < interval.high
    assert low < hits / draws < high
