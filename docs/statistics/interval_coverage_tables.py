"""Render the Markdown tables of docs/statistics/interval_coverage.csv."""

from __future__ import annotations

import math
from collections.abc import Sequence

from effect_laws import LAWS, RATIO_LAW, SCALED_LAW, Fractions
from interval_coverage import FRACTIONS, RATIO_FRACTIONS, RATIO_UNITS, SEEDS, UNITS
from simulation_files import markdown_table

SUFFIXES = ("", "_min_df", "_seeds_only")
"""Endings of the columns of the three intervals."""


def _fractions(row: dict[str, str]) -> Fractions:
    return float(row["seed_share"]), float(row["unit_share"]), float(row["error_share"])


def _percent(fractions: Fractions) -> str:
    return " / ".join(f"{100 * fraction:.0f}%" for fraction in fractions)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def _conditional(row: dict[str, str] | None) -> str:
    """Return the fraction of concentrated tables and the coverage of the others, as far as there are any."""
    if row is None:
        return ""
    coverage = row["coverage_if_not_concentrated"]
    return f"{float(row['concentrated']):.2f}" + (f"; {float(coverage):.3f}" if coverage else "")


def render(rows: Sequence[dict[str, str]]) -> str:
    """Return the Markdown tables, from the rows of the CSV file."""
    table: dict[tuple[str, int, int, Fractions], dict[str, str]] = {
        (row["law"], int(row["seeds"]), int(row["units"]), _fractions(row)): row for row in rows
    }

    def values(law: str, n: int, fractions: Fractions, column: str, units: Sequence[int] = UNITS) -> list[float]:
        return [float(table[law, n, m, fractions][column]) for m in units]

    heading = "shares of seeds / units / errors"
    lines = [
        "# Coverage of the 95% interval over seeds and test units",
        "",
        "Written by `python docs/statistics/interval_coverage.py --markdown docs/statistics/interval_coverage.md`; every row is in "
        "interval_coverage.csv.",
        "Shares are those of the variance of the mean. The largest simulation error at a coverage of 95% is "
        f"{max(math.sqrt(0.0475 / int(row['draws'])) for row in rows if row['law'] in LAWS):.4f}, for ratios of sums "
        f"{max(math.sqrt(0.0475 / int(row['draws'])) for row in rows if row['law'] == RATIO_LAW):.4f}.",
        "",
        *(
            line
            for title, column in (
                (f"Normal effects, range over {UNITS[0]} to {UNITS[-1]} units:", "coverage"),
                ("The same for the t-interval over seeds, which leaves the units out:", "coverage_seeds_only"),
            )
            for line in (
                title,
                "",
                *markdown_table(
                    [heading, *(f"n={n}" for n in SEEDS)],
                    [
                        [_percent(fractions), *(_range(values("normal", n, fractions, column)) for n in SEEDS)]
                        for fractions in FRACTIONS
                    ],
                ),
                "",
            )
        ),
        "Normal effects, n=5, 360 units: coverage and mean width, over that of the interval with a known variance, of the interval",
        "over both / with min(n, m) - 1 degrees of freedom / over seeds alone; pigeonhole bootstrap's standard error times",
        "sqrt(n / (n - 1)) over the formula's:",
        "",
        *markdown_table(
            [heading, "coverage", "mean width", "bootstrap, mean (minimum)"],
            [
                [
                    _percent(fractions),
                    *(
                        " / ".join(
                            f"{values('normal', 5, fractions, name + suffix, [360])[0]:.{digits}f}" for suffix in SUFFIXES
                        )
                        for name, digits in (("coverage", 3), ("width_ratio", 2))
                    ),
                    "{:.2f} ({:.2f})".format(
                        *(values("normal", 5, fractions, f"bootstrap_ratio_{name}", [360])[0] for name in ("mean", "min"))
                    ),
                ]
                for fractions in FRACTIONS
            ],
        ),
        "",
        "Units that are not normal (lognormal: sigma 2), n=5, by the number of units. Shares are those of the true variance, of which",
        "most samples of lognormal units show less:",
        "",
        *markdown_table(
            ["law", heading, *(f"m={m}" for m in UNITS)],
            [
                [
                    law,
                    _percent(fractions),
                    *(
                        f"{float(table[law, 5, m, fractions]['coverage']):.3f}" if (law, 5, m, fractions) in table else ""
                        for m in UNITS
                    ),
                ]
                for law, triples in (
                    ("t3 units", FRACTIONS[4:6]),
                    ("lognormal units", FRACTIONS[3:6]),
                    (SCALED_LAW, FRACTIONS[3:6]),
                )
                for fractions in triples
            ],
        ),
        "",
        "Fraction of tables in which ten units carry over half of the squared influence, and coverage in the others",
        f"({_percent(FRACTIONS[4])}). Normal units do so in over 90% of tables at m=60, and in under 10% at m=100. Under the lognormal",
        "law the other tables are those that lack the largest losses: no warning does not mean that the interval holds.",
        "",
        *markdown_table(
            ["law", *(f"m={m}" for m in UNITS)],
            [
                [law, *(_conditional(table.get((law, 5, m, FRACTIONS[4]))) for m in UNITS)]
                for law in ("t3 units", "lognormal units", SCALED_LAW, RATIO_LAW)
            ],
        ),
        "",
        "Seeds that are not normal, range over units:",
        "",
        *markdown_table(
            ["law", heading, *(f"n={n}" for n in SEEDS)],
            [
                [law, _percent(fractions), *(_range(values(law, n, fractions, "coverage")) for n in SEEDS)]
                for law in ("exponential seeds", "lognormal seeds")
                for fractions in (FRACTIONS[0], FRACTIONS[1], FRACTIONS[3])
            ],
        ),
        "",
        "Ratio of sums (documents of lognormal length, sigma 1), n=5, by the number of documents:",
        "",
        *markdown_table(
            [heading, *(f"m={m}" for m in RATIO_UNITS)],
            [
                [_percent(fractions), *(f"{value:.3f}" for value in values(RATIO_LAW, 5, fractions, "coverage", RATIO_UNITS))]
                for fractions in RATIO_FRACTIONS
            ],
        ),
    ]
    return "\n".join(lines)
