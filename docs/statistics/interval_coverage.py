"""Simulate the coverage of the 95% interval of `estimate_two_way` for several laws of seed and unit effects.

    python docs/statistics/interval_coverage.py [--draws N] [--output CSV] [--markdown FILE]

The script writes the CSV file and prints its tables in Markdown; with `--markdown` it writes them to a file too. With
`--tables` it draws nothing and renders the CSV file that exists.

A table has `seeds` rows and `units` columns, d_su = a_s + b_u + e_su. The expectation is 0. The variance of the mean is 1 and
consists of `seed_share` from the seed effects a, `unit_share` from the unit effects b and `error_share` from the errors e.
Errors are normal. All effects are independent, except in the law "lognormal units and errors": its error of unit u is
proportional to |b_u|, as a unit with a large loss also varies more between seeds.

Tables are not drawn cell by cell. The estimate depends on the sums of squares of row means, of column means and of residuals.
With normal errors those are sums of a few independent variables, whose laws are exact; only effects that are not normal are
drawn one by one. tests/docs/test_statistics_coverage.py compares the result with `estimate_two_way` on explicit tables. Rows
of one law with equal seeds or units use the same draws, so that their simulation errors are correlated.

The law "ratio of sums" is explicit: documents with lognormal lengths, two arms, and the difference of their log mean losses,
with the units' influences by `influence.metric_with_influence`. The expectation is exact; the shares are those of a linear
approximation.

The columns:
    coverage: fraction of 95% intervals of `estimate_two_way` that cover the expectation.
    coverage_min_df: the same with min(seeds, units) - 1 degrees of freedom.
    coverage_seeds_only: the same for the t-interval over seeds, which leaves the units out.
    width_ratio, ..._min_df, ..._seeds_only: mean width of these intervals, over that of the interval with a known variance.
    bootstrap_ratio_mean, bootstrap_ratio_min: standard error of the pigeonhole bootstrap times sqrt(n / (n - 1)), over the
        formula's; mean and minimum over the draws. The bootstrap's standard error is its limit for infinitely many samples,
        which has a closed form (`bootstrap_variance`).
    concentrated: fraction of tables in which ten units carry over half of the squared unit effects, which is when the package
        warns; empty for normal units. The errors' part of the influences is left out, except for ratios of sums.
    coverage_if_not_concentrated: coverage among the other tables; empty below 500 of them.
    simulation_error: standard error of `coverage`, sqrt(p (1 - p) / draws).

Axes: R tables (draws), S seeds, U test units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from effect_laws import (
    LAWS,
    RATIO_LAW,
    RATIO_STANDARD_ERROR,
    SCALED_LAW,
    Array,
    Draws,
    Effects,
    Fractions,
    draw_effects,
    draw_ratio_tables,
    draw_scaled_tables,
    draw_tables,
    measure_concentration,
)
from scipy import special
from simulation_files import run_script

OUTPUT = Path(__file__).with_name("interval_coverage.csv")
CONFIDENCE = 0.95
SEEDS = (3, 5, 8, 20)
UNITS = (30, 100, 360, 1000, 5000)
FRACTIONS: tuple[Fractions, ...] = (
    (0.95, 0.03, 0.02),
    (0.75, 0.20, 0.05),
    (0.50, 0.40, 0.10),
    (0.25, 0.65, 0.10),
    (0.05, 0.90, 0.05),
    (0.01, 0.98, 0.01),
    (0.20, 0.20, 0.60),
)

MIN_CONDITIONAL_DRAWS = 500
SCALED_SEEDS, SCALED_UNITS = (5,), (30, 100, 360, 1000)
"""Sizes for the law "lognormal units and errors", whose errors are drawn cell by cell."""

RATIO_SEEDS, RATIO_UNITS = (5,), (30, 100, 360)
RATIO_FRACTIONS: tuple[Fractions, ...] = ((0.75, 0.20, 0.05), (0.25, 0.65, 0.10), (0.05, 0.90, 0.05))
RATIO_DRAWS_DIVISOR = 10
"""The law "ratio of sums" calls the package for each table and gets fewer draws."""


@dataclass(frozen=True)
class MeanSquares:
    """Means of R tables and their mean squares over n m, (R,): the variances of the mean that each source would explain."""

    mean: Array
    seed: Array
    unit: Array
    error: Array
    seeds: int
    units: int
    concentration: Array | None = None


def scale(draws: Draws, fractions: Fractions) -> MeanSquares:
    """Return means and mean squares of tables with these shares of the variance of the mean, which is 1."""
    seed, unit, error = fractions

    def mean_square(effects: Effects, fraction: float, count: int) -> Array:
        squares = (
            fraction * effects.squares + 2 * math.sqrt(fraction * error) * effects.products + error * effects.error_squares
        )
        return squares / (count - 1)

    return MeanSquares(
        math.sqrt(seed) * draws.seed.mean + math.sqrt(unit) * draws.unit.mean + math.sqrt(error) * draws.error_mean,
        mean_square(draws.seed, seed, draws.seeds),
        mean_square(draws.unit, unit, draws.units),
        error * draws.error_squares / ((draws.seeds - 1) * (draws.units - 1)),
        draws.seeds,
        draws.units,
        draws.unit.concentration,
    )


def mean_squares_of_tables(table_RSU: Array) -> MeanSquares:
    """Return means and mean squares of explicit tables."""
    _, n, m = table_RSU.shape
    mean_R = table_RSU.mean((1, 2))
    row_RS, column_RU = table_RSU.mean(2) - mean_R[:, None], table_RSU.mean(1) - mean_R[:, None]
    residual_RSU = table_RSU - row_RS[:, :, None] - column_RU[:, None, :] - mean_R[:, None, None]
    return MeanSquares(
        mean_R,
        np.square(row_RS).sum(1) / (n * (n - 1)),
        np.square(column_RU).sum(1) / (m * (m - 1)),
        np.square(residual_RSU).sum((1, 2)) / (n * m * (n - 1) * (m - 1)),
        n,
        m,
        measure_concentration(table_RSU.mean(1)),
    )


def estimate_variance(ms: MeanSquares) -> tuple[Array, Array]:
    """Return the variance of the mean and its degrees of freedom, (R,), as `estimate_two_way` does."""
    n, m = ms.seeds, ms.units
    total, larger = ms.seed + ms.unit - ms.error, np.maximum(ms.seed, ms.unit)
    df = total**2 / (ms.seed**2 / (n - 1) + ms.unit**2 / (m - 1) + ms.error**2 / ((n - 1) * (m - 1)))
    return np.maximum(total, larger), np.where(total > larger, df, np.where(ms.seed > ms.unit, n - 1.0, m - 1.0))


def pigeonhole_standard_error(table_SU: Array, draws: int = 1000, seed: int = 0) -> float:
    """Return the bootstrap standard error of the mean that draws seeds and units independently, with replacement.

    The variance is too small for few seeds; times sqrt(n / (n - 1)) it is comparable with that of `estimate_two_way`.
    Source: Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1(2).

    Args:
        table_SU: Values by seed and unit, (S, U).
        draws: Number of bootstrap samples.
        seed: Seed of the random numbers.
    """
    n, m = table_SU.shape
    random = np.random.default_rng(seed)
    times_BS = random.multinomial(n, np.full(n, 1 / n), draws) / n
    times_BU = random.multinomial(m, np.full(m, 1 / m), draws) / m
    return float(np.einsum("bs,su,bu->b", times_BS, table_SU, times_BU, optimize=True).std(ddof=1))


def bootstrap_variance(ms: MeanSquares) -> Array:
    """Return the variance of the pigeonhole bootstrap's means with infinitely many samples, (R,).

    The weights of seeds and units are independent multinomial counts over n and m. Their covariances are (I - J / n) / n^2 and
    (I - J / m) / m^2. The bootstrap's mean minus the mean is linear in the deviations of seed weights, plus linear in those of
    unit weights, plus their product with the residuals. The three terms are uncorrelated, and each gives one mean square.
    Times n / (n - 1), the variance is at least the formula's if there are no fewer units than seeds.
    """
    seed, unit = (ms.seeds - 1) / ms.seeds, (ms.units - 1) / ms.units
    return seed * ms.seed + unit * ms.unit + seed * unit * ms.error


def summarize(ms: MeanSquares, expectation: float = 0.0, variance: float = 1.0) -> dict[str, float | int | str]:
    """Return the columns of one row of the table.

    Args:
        ms: Means and mean squares of the tables.
        expectation: Expectation of the means.
        variance: Variance of the means, for the width ratios.
    """
    quantile = (1 + CONFIDENCE) / 2
    n, m, draws = ms.seeds, ms.units, len(ms.mean)
    variance_R, df_R = estimate_variance(ms)
    error_R, seed_error_R = np.sqrt(variance_R), np.sqrt(ms.seed)
    half_widths = {
        "": special.stdtrit(df_R, quantile) * error_R,
        "_min_df": special.stdtrit(min(n, m) - 1, quantile) * error_R,
        "_seeds_only": special.stdtrit(n - 1, quantile) * seed_error_R,
    }
    distance_R, known_half = np.abs(ms.mean - expectation), special.ndtri(quantile) * math.sqrt(variance)
    row: dict[str, float | int | str] = {}
    for suffix, half_R in half_widths.items():
        row[f"coverage{suffix}"] = float((distance_R <= half_R).mean())
    for suffix, half_R in half_widths.items():
        row[f"width_ratio{suffix}"] = float(half_R.mean() / known_half)
    ratio_R = np.sqrt(bootstrap_variance(ms) * n / (n - 1) / variance_R)
    row |= {"bootstrap_ratio_mean": float(ratio_R.mean()), "bootstrap_ratio_min": float(ratio_R.min())}
    coverage = float(row["coverage"])
    row |= {"concentrated": "", "coverage_if_not_concentrated": ""}
    if ms.concentration is not None:
        spread_R = ms.concentration <= 0.5
        row["concentrated"] = float(1 - spread_R.mean())
        if spread_R.sum() >= MIN_CONDITIONAL_DRAWS:
            row["coverage_if_not_concentrated"] = float((distance_R <= half_widths[""])[spread_R].mean())
    return row | {"draws": draws, "simulation_error": math.sqrt(coverage * (1 - coverage) / draws)}


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng([2026, *key])


def simulate_law(
    law: str, draws: int, seeds: Sequence[int] = SEEDS, units: Sequence[int] = UNITS, fractions: Sequence[Fractions] = FRACTIONS
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one law of `LAWS`."""
    index = list(LAWS).index(law)
    seed_law, unit_law = LAWS[law]
    scaled = law == SCALED_LAW
    if not scaled:
        seed_effects = {n: draw_effects(_generator(index, 0, n), seed_law, n, draws) for n in seeds}
        unit_effects = {m: draw_effects(_generator(index, 1, m), unit_law, m, draws) for m in units}
    for n in seeds:
        for m in units:
            rng = _generator(index, 2, n, m)
            if scaled:
                tables = draw_scaled_tables(rng, n, m, draws)
            else:
                tables = draw_tables(rng, seed_effects[n], unit_effects[m], n, m)
            for triple in fractions:
                yield _label(law, n, m, triple) | summarize(scale(tables, triple))


def simulate_ratio(
    draws: int,
    seeds: Sequence[int] = RATIO_SEEDS,
    units: Sequence[int] = RATIO_UNITS,
    fractions: Sequence[Fractions] = RATIO_FRACTIONS,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the law "ratio of sums"."""
    for n in seeds:
        for m in units:
            for triple in fractions:
                rng = _generator(len(LAWS), n, m, FRACTIONS.index(triple))
                table_RSU, expectation = draw_ratio_tables(rng, n, m, triple, draws)
                row = summarize(mean_squares_of_tables(table_RSU), expectation, RATIO_STANDARD_ERROR**2)
                yield _label(RATIO_LAW, n, m, triple) | row


def _label(law: str, seeds: int, units: int, fractions: Fractions) -> dict[str, Any]:
    names = ("seed_share", "unit_share", "error_share")
    return {"law": law, "seeds": seeds, "units": units} | dict(zip(names, fractions, strict=True))


def simulate(draws: int) -> Iterator[dict[str, Any]]:
    """Yield all rows of the table."""
    for law in LAWS:
        if law == SCALED_LAW:
            yield from simulate_law(law, draws // 2, SCALED_SEEDS, SCALED_UNITS)
        else:
            yield from simulate_law(law, draws)
    yield from simulate_ratio(max(1, draws // RATIO_DRAWS_DIVISOR))


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate the table, write it and print it."""
    from interval_coverage_tables import render

    run_script(
        "Simulate the coverage of two-way intervals.",
        simulate,
        render,
        OUTPUT,
        50_000,
        "tables for each row; a tenth of it for ratios of sums",
        {"seed_share": 2, "unit_share": 2, "error_share": 2, "simulation_error": 5},
        arguments,
    )


if __name__ == "__main__":
    main()
