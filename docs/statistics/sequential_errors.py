"""Simulate errors, power and limits of sequential analyses over seeds and test units.

    python docs/statistics/sequential_errors.py [--draws N] [--output docs/statistics/sequential_errors.csv] [--markdown FILE]

The script writes the CSV file and prints its tables in Markdown; with `--markdown` it writes them to a file too. With
`--tables` it draws nothing and renders the CSV file that exists.

An arm's table is d_su = effect + a_s + b_u + e_su with normal effects and errors. The standard deviation between the seeds of
one test split is 1 (unit below: sd), of which a quarter of the variance comes from errors. The standard error of the mean over
units, with infinitely many seeds, is `unit_se`. The arms are independent. There is an interim analysis after each seed from 5
to 20; all of them use the same test units. The rule is that of `sequential.analyse_interim`, over both sources or over seeds alone;
tests/docs/test_statistics_coverage.py compares the two.

Tables are not drawn cell by cell: the analyses depend on sums over units alone, whose laws are exact.

The columns:
    false_claims: fraction of comparisons without any difference in the population in which some arm is called better or worse
        at some analysis.
    false_claims_seeds_only: the same with the interval over seeds alone.
    limited: fraction of arms without a difference that stop because the test set is the limit.
    limited_1sd, limited_2sd: the same if the true difference is 1 or 2 sd.
    power_1sd, power_2sd: fraction of arms that are called worse, before 20 seeds or the limit, if the true difference is 1 or
        2 sd.
    power_two_way_1sd, power_two_way_2sd: the same for one analysis of 20 seeds by `estimate_two_way`, at the same level of an
        arm.
    power_known_1sd, power_known_2sd: the same if the standard error for infinitely many seeds were known. No number of seeds
        gives more.
    seeds, seeds_1sd, seeds_2sd: mean number of seeds at which an arm stops.
    simulation_error: of a rate of .05 over comparisons, sqrt(.05 * .95 / draws).

Axes: R comparisons (draws), A arms, N seeds so far, S seeds, U test units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special
from simulation_files import markdown_table, run_script

from routelab.comparison.statistics.sequential import settling_square

Array = NDArray[Any]

OUTPUT = Path(__file__).with_name("sequential_errors.csv")
LEVEL = 0.05
FIRST_SEEDS, MAX_SEEDS = 5, 20
UNIT_SE = (0.5, 1.0, 2.0)
ARMS = (1, 8)
UNITS = 360
ERROR_FRACTION = 0.25
"""Fraction of the variance between seeds that comes from errors."""
MARGIN_SD = 0.1
"""Margin of equivalence, in sd: too small to be shown with these test sets."""
EFFECTS_SD = (0.0, 1.0, 2.0)


@dataclass(frozen=True)
class Analyses:
    """Statistics of the first n seeds: (R, A, N), n = 1 to N.

    Attributes:
        mean: Mean difference.
        deviation: Standard deviation between seeds.
        skewness: Third central moment over the cube of the root mean square deviation.
        unit_error: Standard error of the mean over units, for these seeds.
        ms_error: Mean square of the residuals over n m.
    """

    mean: Array
    deviation: Array
    skewness: Array
    unit_error: Array
    ms_error: Array


def _moments(values_RAN: Array) -> tuple[Array, Array, Array]:
    """Return mean, standard deviation and skewness of the first n values, for all n; values are of the order of 1."""
    n = np.arange(1, values_RAN.shape[-1] + 1)
    mean, square, cube = (np.cumsum(values_RAN**power, -1) / n for power in (1, 2, 3))
    variance = np.maximum(square - mean**2, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = (cube - 3 * mean * square + 2 * mean**3) / variance**1.5
        return mean, np.sqrt(variance * n / (n - 1)), skewness


def draw_analyses(rng: np.random.Generator, unit_se: float, draws: int, arms: int, seeds: int = MAX_SEEDS) -> Analyses:
    """Draw the statistics of arms without a difference."""
    shape, m = (draws, arms), UNITS
    error_variance = ERROR_FRACTION * m
    unit_mean = unit_se * rng.standard_normal(shape)
    seed_variance = 1 - ERROR_FRACTION
    noise_RAN = rng.standard_normal((*shape, seeds)) * math.sqrt(seed_variance + error_variance / m)
    mean, deviation, skewness = _moments(unit_mean[..., None] + noise_RAN)

    # Deviations of units are vectors of m - 1 dimensions. The vector of the unit effects has the length `length`. The sum of the
    # errors of n seeds has a component `along` it, and a length `across` in the other m - 2 dimensions.
    length = unit_se * math.sqrt(m) * np.sqrt(rng.chisquare(m - 1, shape))
    along, across, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    unit_error, ms_error = np.empty((*shape, seeds)), np.full((*shape, seeds), math.nan)
    scale = math.sqrt(error_variance)
    for index in range(seeds):
        n = index + 1
        step_along, step_across = scale * rng.standard_normal(shape), scale * rng.standard_normal(shape)
        rest = error_variance * rng.chisquare(m - 3, shape)
        along, across = along + step_along, np.sqrt((across + step_across) ** 2 + rest)
        squares = squares + step_along**2 + step_across**2 + rest
        unit_error[..., index] = np.sqrt(((length + along / n) ** 2 + (across / n) ** 2) / (m * (m - 1)))
        if n > 1:
            ms_error[..., index] = (squares - (along**2 + across**2) / n) / (n * m * (n - 1) * (m - 1))
    return Analyses(mean, deviation, skewness, unit_error, ms_error)


def analyses_of_tables(table_RASU: Array) -> Analyses:
    """Return the statistics of explicit tables, (R, A, S, U)."""
    seeds, m = table_RASU.shape[2:]
    mean, deviation, skewness = _moments(table_RASU.mean(-1))
    unit_error, ms_error = np.empty(mean.shape), np.full(mean.shape, math.nan)
    for index in range(seeds):
        n = index + 1
        table = table_RASU[:, :, :n]
        column = table.mean(2)
        unit_error[..., index] = column.std(-1, ddof=1) / math.sqrt(m)
        if n > 1:
            residual = table - table.mean(-1, keepdims=True) - (column - column.mean(-1, keepdims=True))[:, :, None]
            ms_error[..., index] = np.square(residual).sum((2, 3)) / (n * m * (n - 1) * (m - 1))
    return Analyses(mean, deviation, skewness, unit_error, ms_error)


@dataclass(frozen=True)
class Results:
    """Result of one interim analysis of every arm, (R, A): whether it is better, worse, equivalent, or limited by the test set."""

    low: Array
    high: Array
    better: Array
    worse: Array
    equivalent: Array
    limited: Array


def _seed_interval(analyses: Analyses, n: int, effect: float, level: float) -> tuple[Array, Array]:
    """Return the bounds of the anytime interval over seeds, widened for skewness as by `widen_for_skewness`."""
    mean, deviation, skewness = (
        analyses.mean[..., n - 1] + effect,
        analyses.deviation[..., n - 1],
        analyses.skewness[..., n - 1],
    )
    critical = math.sqrt(settling_square(n, level) / n)

    def inverse(u: float) -> Array:
        shifted = u - skewness / (6 * n)
        return 3 / skewness * (np.cbrt(1 + skewness * shifted) - 1)

    half = critical * deviation
    low, high = mean - deviation * inverse(critical), mean - deviation * inverse(-critical)
    return np.minimum(mean - half, low), np.maximum(mean + half, high)


def judge_interim(
    analyses: Analyses, n: int, effect: float = 0.0, *, with_units: bool = True, units: int = UNITS, margin: float = MARGIN_SD
) -> Results:
    """Judge all arms on the first n seeds, as `sequential.analyse_interim` does.

    Args:
        analyses: Statistics without the effect.
        n: Number of seeds, at least 5.
        effect: True difference of every arm.
        with_units: Whether the interval covers test units, too.
        units: Number of test units.
        margin: Margin of equivalence.
    """
    arms = analyses.mean.shape[1]
    level = LEVEL / arms / (2 if with_units else 1)
    seed_low, seed_high = _seed_interval(analyses, n, effect, level)
    unit_half = np.zeros(seed_low.shape)
    if with_units:
        largest = analyses.unit_error[..., FIRST_SEEDS - 1 : n].max(-1)
        unit_half = special.stdtrit(units - 1, 1 - level / 2) * largest
    low, high = seed_low - unit_half, seed_high + unit_half
    better, worse = high < 0, low > 0
    equivalent = ~better & ~worse & (low > -margin) & (high < margin)
    farthest = np.maximum(np.abs(seed_low), np.abs(seed_high))
    nearest = np.maximum(0.0, np.maximum(seed_low, -seed_high))
    limited = (farthest < unit_half) & (nearest + unit_half >= margin)
    return Results(low, high, better, worse, equivalent, limited)


@dataclass(frozen=True)
class SequenceResult:
    """States of the arms after the last analysis of each comparison, (R, A).

    Attributes:
        claimed: Whether an arm is called better or worse at any analysis, even after it has been limited.
        worse: Whether the arm stops as worse.
        limited: Whether the arm stops because the test set is the limit.
        seeds: Number of seeds at which it stops.
    """

    claimed: Array
    worse: Array
    limited: Array
    seeds: Array


def run_sequence(analyses: Analyses, effect: float = 0.0, *, with_units: bool = True) -> SequenceResult:
    """Judge after each seed from 5 to 20. An arm stops at its first verdict, or when the test set is the limit."""
    shape = analyses.mean.shape[:2]
    claimed, worse, limited, running = (np.full(shape, value) for value in (False, False, False, True))
    seeds = np.full(shape, MAX_SEEDS)
    for n in range(FIRST_SEEDS, MAX_SEEDS + 1):
        result = judge_interim(analyses, n, effect, with_units=with_units)
        claimed |= result.better | result.worse
        worse |= running & result.worse
        decided = result.better | result.worse | result.equivalent
        limited |= running & result.limited & ~decided
        stops = running & (decided | result.limited)
        seeds[stops] = n
        running &= ~stops
    return SequenceResult(claimed, worse, limited, seeds)


def _power_two_way(analyses: Analyses, effect: float) -> float:
    """Return the power of one test by `estimate_two_way` at the last analysis."""
    n, m, level = MAX_SEEDS, UNITS, LEVEL / analyses.mean.shape[1]
    seed, unit, error = analyses.deviation[..., -1] ** 2 / n, analyses.unit_error[..., -1] ** 2, analyses.ms_error[..., -1]
    total, larger = seed + unit - error, np.maximum(seed, unit)
    df = total**2 / (seed**2 / (n - 1) + unit**2 / (m - 1) + error**2 / ((n - 1) * (m - 1)))
    df = np.where(total > larger, df, np.where(seed > unit, n - 1.0, m - 1.0))
    half = special.stdtrit(df, 1 - level / 2) * np.sqrt(np.maximum(total, larger))
    return float((analyses.mean[..., -1] + effect > half).mean())


def summarize(analyses: Analyses, unit_se: float) -> dict[str, float]:
    """Return the columns of one row of the table."""
    draws, arms = analyses.mean.shape[:2]
    sequences = {effect: run_sequence(analyses, effect) for effect in EFFECTS_SD}
    row = {
        "false_claims": float(sequences[0.0].claimed.any(-1).mean()),
        "false_claims_seeds_only": float(run_sequence(analyses, with_units=False).claimed.any(-1).mean()),
    }
    critical = special.ndtri(1 - LEVEL / arms / 2)
    for effect, sequence in sequences.items():
        suffix = f"_{effect:.0f}sd" if effect else ""
        row |= {f"limited{suffix}": float(sequence.limited.mean()), f"seeds{suffix}": float(sequence.seeds.mean())}
        if effect:
            row[f"power{suffix}"] = float(sequence.worse.mean())
            row[f"power_two_way{suffix}"] = _power_two_way(analyses, effect)
            row[f"power_known{suffix}"] = float(special.ndtr(effect / unit_se - critical))
    return row | {"simulation_error": math.sqrt(LEVEL * (1 - LEVEL) / draws)}


def simulate(draws: int, unit_errors: Sequence[float] = UNIT_SE, arms: Sequence[int] = ARMS) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table; every row has its own generator."""
    for unit_se in unit_errors:
        for count in arms:
            rng = np.random.default_rng([2026, round(1000 * unit_se), count])
            analyses = draw_analyses(rng, unit_se, draws, count)
            yield {"unit_se": unit_se, "arms": count, "units": UNITS, "draws": draws} | summarize(analyses, unit_se)


def render(rows: Sequence[dict[str, str]]) -> str:
    """Return the Markdown tables, from the rows of the CSV file."""

    def rates(row: dict[str, str], *names: str) -> str:
        return " / ".join(f"{float(row[name]):.3f}" for name in names)

    def labels(row: dict[str, str]) -> list[str]:
        return [f"{float(row['unit_se']):.1f}", row["arms"]]

    return "\n".join(
        [
            "# Errors and power of sequential analyses over seeds and test units",
            "",
            "Written by `python docs/statistics/sequential_errors.py --markdown docs/statistics/sequential_errors.md`; more columns are in",
            f"sequential_errors.csv. Normal effects, {UNITS} units, an analysis after each seed from {FIRST_SEEDS} to {MAX_SEEDS}, "
            f"{int(rows[0]['draws']):,} comparisons. Differences",
            "and the standard error over units are in standard deviations between seeds (sd).",
            "",
            "False claims about the population (level .05 for all arms and analyses together), and how arms without a difference end:",
            "",
            *markdown_table(
                [
                    "unit SE",
                    "arms",
                    "false claims",
                    "with the interval over seeds alone",
                    "limited by the test set",
                    "mean seeds",
                ],
                [
                    [
                        *labels(row),
                        *(rates(row, name) for name in ("false_claims", "false_claims_seeds_only", "limited")),
                        f"{float(row['seeds']):.1f}",
                    ]
                    for row in rows
                ],
            ),
            "",
            "Power of the rule / one two-way test of 20 seeds / infinitely many seeds with a known standard error over units; arms limited",
            "by the test set:",
            "",
            *markdown_table(
                ["unit SE", "arms", "power at 1 sd", "at 2 sd", "limited at 1 sd", "at 2 sd"],
                [
                    [
                        *labels(row),
                        *(
                            rates(row, *(f"{name}_{sd}sd" for name in ("power", "power_two_way", "power_known")))
                            for sd in (1, 2)
                        ),
                        *(rates(row, f"limited_{sd}sd") for sd in (1, 2)),
                    ]
                    for row in rows
                ],
            ),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate the table, write it and print it."""
    run_script(
        "Simulate errors and power of sequential analyses.",
        simulate,
        render,
        OUTPUT,
        20_000,
        "comparisons for each row",
        {"unit_se": 1, "simulation_error": 5},
        arguments,
    )


if __name__ == "__main__":
    main()
