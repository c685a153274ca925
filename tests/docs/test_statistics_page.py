"""docs/statistics.md: its tables are those of the committed simulations, and its worked example holds."""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
from influence_methods import simulate_coverage
from scipy import stats

from routelab.comparison.statistics.two_way import estimate_over_seeds, estimate_over_units, estimate_two_way

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "statistics.md").read_text(encoding="utf-8")


def table(after):
    """Return the rows of the first table after a text."""
    lines = PAGE[PAGE.index(after) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    end = next(number for number, line in enumerate(lines) if number > start and not line.startswith("|"))
    return lines[start:end]


@pytest.mark.parametrize(
    ("after", "source"),
    [
        ("Coverage of the 95% interval with normal effects", "interval_coverage.md"),
        ("The same for the t-interval over seeds alone", "interval_coverage.md"),
        ("Units that are not normal, 5 seeds", "interval_coverage.md"),
        ("so many standard deviations between seeds:", "sequential_errors.md"),
    ],
)
def test_tables_are_those_of_the_scripts(after, source):
    rows = table(after)
    assert len(rows) > 4
    written = (DOCS / "statistics" / source).read_text(encoding="utf-8").splitlines()
    assert set(rows) <= set(written)


def test_the_table_of_laws_is_that_of_the_simulation():
    with (DOCS / "statistics/laws.csv").open(encoding="utf-8") as file:
        stored = [row for row in csv.DictReader(file) if row["reference"] == "steady"]
    names = {"t with 3 degrees of freedom": "t3", "10% bad seeds (+5 sd)": "bad seeds"}
    rows = table("## Differences between seeds that are not normal")[2:]
    assert len(rows) == 5
    for row in rows:
        law, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        settings = [("fixed 5", "1"), ("fixed 5", "8"), ("sequential", "1"), ("sequential", "8")]
        for cell, (mode, arms) in zip(cells, settings, strict=True):
            result = next(r for r in stored if (r["law"], r["mode"], r["arms"]) == (names.get(law, law), mode, arms))
            rule = "false_claims_with_withholding" if mode == "fixed 5" else "false_claims_with_both"
            assert cell == f"{float(result['false_claims']):.3f}, {float(result[rule]):.3f}"


def test_rates_that_the_text_gives():
    """Power that is kept, and the rates with a noisy reference."""
    with (DOCS / "statistics/laws.csv").open(encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    draws = int(stored[0]["draws"])
    noisy = [float(row["false_claims"]) for row in stored if row["reference"] == "noisy"]
    assert max(noisy) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
    normal = {
        (row["mode"], row["arms"]): {name: float(value) for name, value in row.items() if name.startswith("power")}
        for row in stored
        if row["law"] == "normal" and row["reference"] == "steady"
    }
    one, eight = normal["sequential", "1"], normal["sequential", "8"]
    fractions = [one[f"power_{effect}sd_with_both"] / one[f"power_t_{effect}sd"] for effect in (1, 2)]
    fractions += [eight[f"power_{effect}sd_with_both"] / eight[f"power_t_{effect}sd"] for effect in (1, 2)]
    fractions += [eight[f"power_{effect}sd"] / eight[f"power_t_{effect}sd"] for effect in (1, 2)]
    skewed = next(
        row
        for row in stored
        if (row["law"], row["reference"], row["mode"], row["arms"]) == ("exponential", "steady", "sequential", "8")
    )
    percentages = [f"{100 * fraction:.0f}%" for fraction in fractions]
    percentages.append(f"{100 * float(skewed['false_claims_with_both']):.1f}%")
    sentence = PAGE[PAGE.index("**seeds=auto** also widens") :].split("\n- ")[0]
    assert re.findall(r"[\d.]+%", sentence) == percentages
    fixed = normal["fixed 5", "1"]
    assert fixed["power_1sd_with_withholding"] / fixed["power_t_1sd"] == pytest.approx(0.95, abs=0.01)


def test_the_worked_example():
    result = estimate_two_way(np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]]))
    example = " ".join(PAGE[PAGE.index("### Worked example") : PAGE.index("## How well the interval covers")].split())
    interval = result.interval()
    for value, text in (
        (result.seed_error, "sqrt(6 / 6) = 1."),
        (result.unit_error, f"sqrt(14 / 6) = {result.unit_error:.2f}"),
        (result.standard_error, f"The standard error is {result.standard_error:.2f}"),
        (result.degrees_of_freedom, f"= {result.degrees_of_freedom:.2f}"),
        (
            interval.low,
            f"4 ± {stats.t.ppf(0.975, result.degrees_of_freedom):.2f} x 1.83 = [{interval.low:.2f}, {interval.high:.2f}]",
        ),
        (1.0, f"4 ± {stats.t.ppf(0.975, 1):.1f} x 1,"),
        (1.0, f"4 ± {stats.t.ppf(0.975, 2):.2f} x 1.53"),
    ):
        assert math.isfinite(value)
        assert text in example
    table_SU = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]])
    assert estimate_over_seeds(table_SU.mean(1)).standard_error == pytest.approx(1.0)
    assert estimate_over_units(table_SU).standard_error == pytest.approx(math.sqrt(14 / 6))


def test_the_jackknife_covers_more_than_the_delta_method():
    coverage = simulate_coverage(30, 300)
    # Three simulation errors of a rate of .91 are .05.
    assert coverage["jackknife"] > 0.86
    assert coverage["delta method"] < coverage["jackknife"] - 0.05


def test_power_of_sequential_analyses_with_units():
    with (DOCS / "statistics/sequential_errors.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if float(row["unit_se"]) == 0.5 and row["arms"] == "1"]
    (row,) = rows
    given = [f"{100 * float(row[name]):.0f}%" for name in ("power_1sd", "power_2sd", "power_two_way_1sd", "power_two_way_2sd")]
    sentence = PAGE[PAGE.index("The price is power.") :].split("\n\n")[0]
    assert re.findall(r"[\d.]+%", sentence) == given
