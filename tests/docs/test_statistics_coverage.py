"""docs/statistics/interval_coverage.csv and sequential_errors.csv: their rules are the package's, and the promises hold."""

import math
from pathlib import Path

import effect_laws
import interval_coverage
import interval_coverage_tables
import numpy as np
import pytest
import sequential_errors
from interval_coverage import pigeonhole_standard_error
from scipy import stats
from simulation_files import read_rows

from routelab.comparison.statistics.contrast import Contrast
from routelab.comparison.statistics.sequential import analyse_interim
from routelab.comparison.statistics.two_way import estimate_two_way, influence_concentration

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "statistics"
LOW, HIGH = 0.92, 0.98
LEVEL = 0.05
FRACTIONS = [(0.95, 0.03, 0.02), (0.25, 0.65, 0.10), (0.20, 0.20, 0.60), (0.02, 0.02, 0.96)]


@pytest.fixture(scope="module")
def coverage():
    return vars(effect_laws) | vars(interval_coverage) | vars(interval_coverage_tables)


@pytest.fixture(scope="module")
def sequential():
    return vars(sequential_errors)


@pytest.fixture(scope="module")
def stored(coverage):
    return read_rows(FOLDER / "interval_coverage.csv")


@pytest.fixture(scope="module")
def stored_sequential(sequential):
    return read_rows(FOLDER / "sequential_errors.csv")


def simulation_error(p, draws):
    return math.sqrt(p * (1 - p) / draws)


def explicit_tables(coverage, rng, law, draws, n, m, fractions):
    """Draw tables (R, S, U) cell by cell, with variance 1 of the mean."""
    seed_law, unit_law = coverage["LAWS"][law]
    a_RS = coverage["EFFECTS"][seed_law](rng, (draws, n))
    b_RU = coverage["EFFECTS"][unit_law](rng, (draws, m))
    error_RSU = rng.standard_normal((draws, n, m))
    if law == coverage["SCALED_LAW"]:
        error_RSU *= b_RU[:, None, :]
    seed, unit, error = fractions
    table_RSU = math.sqrt(n * seed) * a_RS[:, :, None] + math.sqrt(m * unit) * b_RU[:, None, :]
    return table_RSU + math.sqrt(n * m * error) * error_RSU


def drawn_mean_squares(coverage, rng, law, draws, n, m, fractions):
    if law == coverage["SCALED_LAW"]:
        return coverage["scale"](coverage["draw_scaled_tables"](rng, n, m, draws), fractions)
    seed, unit = (coverage["draw_effects"](rng, name, k, draws) for name, k in zip(coverage["LAWS"][law], (n, m), strict=True))
    return coverage["scale"](coverage["draw_tables"](rng, seed, unit, n, m), fractions)


@pytest.mark.parametrize("fractions", FRACTIONS)
@pytest.mark.parametrize(("n", "m"), [(3, 30), (8, 12)])
def test_estimates_are_those_of_the_package(coverage, fractions, n, m):
    table_RSU = explicit_tables(coverage, np.random.default_rng(5), "t3 units", 30, n, m, fractions)
    ms = coverage["mean_squares_of_tables"](table_RSU)
    variance_R, df_R = coverage["estimate_variance"](ms)
    summary = coverage["summarize"](ms)
    estimates = [estimate_two_way(table_SU) for table_SU in table_RSU]
    assert np.sqrt(variance_R) == pytest.approx([estimate.standard_error for estimate in estimates])
    assert df_R == pytest.approx([estimate.degrees_of_freedom for estimate in estimates])
    assert np.sqrt(ms.seed) == pytest.approx([estimate.seed_error for estimate in estimates])
    intervals = [estimate.interval() for estimate in estimates]
    assert summary["coverage"] == np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert summary["width_ratio"] == pytest.approx(
        np.mean([interval.high - interval.mean for interval in intervals]) / 1.959964
    )
    assert ms.concentration == pytest.approx([influence_concentration(table_SU) for table_SU in table_RSU])


@pytest.mark.parametrize("fractions", FRACTIONS)
def test_bootstrap_variance_is_the_limit_of_the_pigeonhole_bootstrap(coverage, fractions):
    table_RSU = explicit_tables(coverage, np.random.default_rng(6), "normal", 4, 5, 40, fractions)
    expected = np.sqrt(coverage["bootstrap_variance"](coverage["mean_squares_of_tables"](table_RSU)))
    errors = [pigeonhole_standard_error(table_SU, draws=10_000) for table_SU in table_RSU]
    assert expected == pytest.approx(errors, rel=5 / math.sqrt(2 * 10_000))


@pytest.mark.parametrize(
    "law", ["normal", "exponential seeds", "lognormal seeds", "t3 units", "lognormal units", "lognormal units and errors"]
)
@pytest.mark.parametrize("fractions", [FRACTIONS[0], FRACTIONS[1]])
def test_drawn_tables_have_the_law_of_explicit_tables(coverage, law, fractions):
    n, m = 4, 35
    sampled = drawn_mean_squares(coverage, np.random.default_rng(7), law, 8000, n, m, fractions)
    explicit = coverage["mean_squares_of_tables"](
        explicit_tables(coverage, np.random.default_rng(8), law, 2000, n, m, fractions)
    )
    for name in ("mean", "seed", "unit", "error"):
        assert stats.ks_2samp(getattr(sampled, name), getattr(explicit, name)).pvalue > 1e-3, name
    variances = [coverage["estimate_variance"](ms)[0] for ms in (sampled, explicit)]
    assert stats.ks_2samp(*variances).pvalue > 1e-3
    statistics = [abs(ms.mean) / np.sqrt(variance) for ms, variance in zip((sampled, explicit), variances, strict=True)]
    assert stats.ks_2samp(*statistics).pvalue > 1e-3


def test_effects_have_mean_0_and_deviation_1(coverage):
    rng = np.random.default_rng(9)
    for name, draw in coverage["EFFECTS"].items():
        if name != "lognormal 2":  # A sample shows too little of its variance.
            values = draw(rng, (1000, 400))
            assert (values.mean(), values.std()) == pytest.approx((0.0, 1.0), abs=0.1), name


def test_concentration_of_normal_units_is_as_the_document_says(coverage):
    rng = np.random.default_rng(10)
    concentrated = {m: (coverage["measure_concentration"](rng.standard_normal((2000, m))) > 0.5).mean() for m in (60, 100)}
    assert concentrated[60] > 0.9
    assert concentrated[100] < 0.1


def test_coverage_with_normal_effects_in_a_short_simulation(coverage):
    draws = 4000
    rows = list(coverage["simulate_law"]("normal", draws, units=(30, 360, 5000)))
    assert len(rows) == 4 * 3 * len(coverage["FRACTIONS"])
    for row in rows:
        assert LOW - 3 * simulation_error(LOW, draws) <= row["coverage"] <= HIGH + 3 * simulation_error(HIGH, draws), row
        assert row["bootstrap_ratio_min"] >= 0.9, row


def test_stored_coverage(coverage, stored):
    normal = [row for row in stored if row["law"] == "normal"]
    assert len(normal) == len(coverage["SEEDS"]) * len(coverage["UNITS"]) * len(coverage["FRACTIONS"])
    for row in normal:
        assert LOW <= float(row["coverage"]) <= HIGH, row
        # The alternatives: too few degrees of freedom cover too much, seeds alone cover too little.
        assert float(row["coverage_min_df"]) >= float(row["coverage"]), row
        if float(row["unit_share"]) >= 0.4:
            assert float(row["coverage_seeds_only"]) < LOW + 0.01, row
    for row in stored:
        assert float(row["bootstrap_ratio_min"]) >= 0.9, row
        if row["law"] == "t3 units":
            assert LOW <= float(row["coverage"]) <= HIGH, row


def test_stored_coverage_of_ratios_of_sums(stored):
    rows = [row for row in stored if row["law"] == "ratio of sums"]
    assert sorted({int(row["units"]) for row in rows}) == [30, 100, 360]
    for row in rows:
        # If the documents dominate, a few long ones decide.
        low = LOW if float(row["seed_share"]) >= 0.25 else 0.88
        assert low <= float(row["coverage"]) <= HIGH, row


def test_ratios_of_sums_in_a_short_simulation(coverage, stored):
    draws = 400
    for row in coverage["simulate_ratio"](draws, units=(100,), fractions=((0.25, 0.65, 0.10),)):
        keys = ("law", "seeds", "units", "seed_share")
        expected = next(old for old in stored if all(_same(old[key], row[key]) for key in keys))
        p = float(expected["coverage"])
        assert row["coverage"] == pytest.approx(p, abs=4 * simulation_error(p, draws))


def _same(text, value):
    return float(text) == value if isinstance(value, float) else text == str(value)


def test_stored_rates_are_reproduced(coverage, stored):
    """Fewer draws give the stored coverage within four of its simulation errors."""
    draws = 4000
    for row in coverage["simulate_law"]("exponential seeds", draws, seeds=(5,), units=(100,)):
        keys = ("law", "seeds", "units", "seed_share", "unit_share")
        expected = next(old for old in stored if all(_same(old[key], row[key]) for key in keys))
        for name in ("coverage", "coverage_min_df", "coverage_seeds_only"):
            p = float(expected[name])
            assert row[name] == pytest.approx(p, abs=1e-3 + 4 * simulation_error(p, draws)), (row, name)


def test_markdown_is_that_of_the_tables(coverage, sequential, stored, stored_sequential):
    assert (FOLDER / "interval_coverage.md").read_text(encoding="utf-8") == coverage["render"](stored) + "\n"
    text = sequential["render"](stored_sequential) + "\n"
    assert (FOLDER / "sequential_errors.md").read_text(encoding="utf-8") == text


def sequential_tables(sequential, rng, draws, arms, seeds, units, unit_se):
    """Draw explicit tables (R, A, S, U) of the model of sequential_errors.py."""
    error = sequential["ERROR_FRACTION"]
    a = math.sqrt(1 - error) * rng.standard_normal((draws, arms, seeds, 1))
    b = unit_se * math.sqrt(units) * rng.standard_normal((draws, arms, 1, units))
    return a + b + math.sqrt(error * units) * rng.standard_normal((draws, arms, seeds, units))


@pytest.mark.parametrize("with_units", [True, False])
def test_interim_analyses_are_those_of_the_package(sequential, with_units):
    rng, margin, units = np.random.default_rng(12), 0.8, 40
    tables = sequential_tables(sequential, rng, 6, 6, 20, units, 1.0)
    # Squared exponential noise makes half of the tables skewed over seeds.
    tables[::2] += 0.2 * rng.standard_exponential((3, 6, 20, 1)) ** 2
    # Effects and scales so that all states occur.
    tables *= rng.choice([0.05, 0.2, 1.0], (6, 6, 1, 1))
    tables += np.linspace(-3, 2, 6)[:, None, None]
    analyses = sequential["analyses_of_tables"](tables)
    uncertainty = ("seeds", "examples") if with_units else ("seeds",)
    occurred = set()
    for n in (5, 6, 11, 20):
        result = sequential["judge_interim"](analyses, n, with_units=with_units, units=units, margin=margin)
        for r, arms in enumerate(tables[:, :, :n]):
            contrasts = {str(a): Contrast(table_SU.mean(1), table_SU) for a, table_SU in enumerate(arms)}
            for name, expected in analyse_interim(contrasts, margin, LEVEL, uncertainty).items():
                index = r, int(name)
                assert result.low[index] == pytest.approx(expected.interval.low, rel=1e-6)
                assert result.high[index] == pytest.approx(expected.interval.high, rel=1e-6)
                states = [state for state in ("better", "worse", "equivalent") if getattr(result, state)[index]]
                assert states == ([] if expected.state == "open" else [expected.state])
                assert result.limited[index] == expected.limited
                occurred |= {expected.state} | ({"limited"} if expected.limited else set())
    assert occurred == {"better", "worse", "equivalent", "open"} | ({"limited"} if with_units else set())


def test_drawn_analyses_have_the_law_of_explicit_tables(sequential):
    units, unit_se = sequential["UNITS"], 0.5
    sampled = sequential["draw_analyses"](np.random.default_rng(13), unit_se, 6000, 1)
    explicit = sequential["analyses_of_tables"](
        sequential_tables(sequential, np.random.default_rng(14), 600, 1, 20, units, unit_se)
    )
    for name in ("mean", "deviation", "skewness", "unit_error", "ms_error"):
        for n in (5, 20):
            samples = [getattr(analyses, name)[:, 0, n - 1] for analyses in (sampled, explicit)]
            assert stats.ks_2samp(*samples).pvalue > 1e-3, (name, n)
    # The standard errors over units of two analyses are correlated.
    change = [analyses.unit_error[:, 0, 4:].max(-1) - analyses.unit_error[:, 0, -1] for analyses in (sampled, explicit)]
    assert stats.ks_2samp(*change).pvalue > 1e-3


def check_sequential(rows, draws):
    """Check the level with both sources, and that seeds alone do not keep it."""
    bound = LEVEL + 3 * simulation_error(LEVEL, draws)
    for row in rows:
        assert float(row["false_claims"]) <= bound, row
        if float(row["unit_se"]) == 1.0:
            assert float(row["false_claims_seeds_only"]) > 0.2, row
        assert float(row["limited"]) > float(row["limited_2sd"]), row


def test_sequential_errors_in_a_short_simulation(sequential):
    draws = 1000
    check_sequential(sequential["simulate"](draws), draws)


def test_stored_sequential_errors(sequential, stored_sequential):
    assert len(stored_sequential) == len(sequential["UNIT_SE"]) * len(sequential["ARMS"])
    check_sequential(stored_sequential, math.inf)
