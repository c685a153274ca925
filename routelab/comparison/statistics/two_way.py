"""Estimates of a mean over training seeds and test units, which are crossed random effects. Pure functions of numbers.

A table d (S, U) holds one value for each seed s and each test unit u. The model is d_su = mu + a_s + b_u + e_su with independent
seed effects a, unit effects b and errors e. The estimator of the variance of the mean is that of the two-way layout (Searle,
Casella & McCulloch 1992, Variance Components, chapter 4). The degrees of freedom are those of Satterthwaite (1946).

Axes: S seeds, U test units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from routelab.core.intervals import Interval

Floats = NDArray[np.float64]

FEW_UNITS = 30
"""Number of test units below which an interval rests on the assumption that their effects are normal."""

CONCENTRATED_UNITS = 10
"""Number of test units whose fraction of the squared influence is reported."""


@dataclass(frozen=True)
class Estimate:
    """Mean with its standard error.

    Attributes:
        mean: Mean over seeds and units.
        standard_error: Standard error of the mean; NaN if it cannot be estimated.
        degrees_of_freedom: Degrees of freedom of the t distribution of (mean - expectation) / standard_error.
        seeds: Number of seeds.
        units: Number of test units, None if the estimate covers seeds alone.
        seed_error: Standard error over seeds for this test split, None if the estimate covers units alone.
        unit_error: Standard error over test units for these trained models, None if the estimate covers seeds alone.
        unit_floor: Standard error with infinitely many seeds, None unless the estimate covers both.
        seed_floor: Standard error with infinitely many test units, None unless the estimate covers both.
    """

    mean: float
    standard_error: float
    degrees_of_freedom: float
    seeds: int
    units: int | None = None
    seed_error: float | None = None
    unit_error: float | None = None
    unit_floor: float | None = None
    seed_floor: float | None = None

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the t-interval of the mean."""
        half = self._half_width(1 - confidence)
        return Interval(self.mean, self.mean - half, self.mean + half, self.seeds)

    def p_value(self) -> float:
        """Return the two-sided p-value of a mean of 0; NaN without a standard error."""
        if not math.isfinite(self.standard_error):
            return math.nan
        if self.standard_error == 0.0:
            return float(self.mean == 0.0)
        return float(2 * stats.t.sf(abs(self.mean) / self.standard_error, self.degrees_of_freedom))

    def p_equivalent(self, margin: float) -> float:
        """Return the p-value of equivalence within +-margin (two one-sided t-tests); NaN without a standard error.

        Raises:
            ValueError: if the margin is not above 0.
        """
        if not margin > 0:
            raise ValueError(f"margin is {margin}; it must be above 0")
        if not math.isfinite(self.standard_error):
            return math.nan
        if self.standard_error == 0.0:
            return float(abs(self.mean) >= margin)
        return float(stats.t.cdf((abs(self.mean) - margin) / self.standard_error, self.degrees_of_freedom))

    def supported_margin(self, alpha: float) -> float:
        """Return the smallest margin within which two one-sided t-tests at level alpha show equivalence."""
        if not math.isfinite(self.standard_error):
            return math.nan
        return abs(self.mean) + self._half_width(2 * alpha)

    def _half_width(self, alpha: float) -> float:
        if self.standard_error == 0.0:
            return 0.0
        return float(stats.t.ppf(1 - alpha / 2, self.degrees_of_freedom)) * self.standard_error


def estimate_over_seeds(values_S: Sequence[float] | Floats) -> Estimate:
    """Estimate a mean from one value for each seed; the test split counts as fixed.

    Args:
        values_S: One value for each seed, (S,).

    Returns:
        The estimate; its standard error is NaN below two seeds or if a value is not finite.
    """
    x = np.asarray(values_S, dtype=np.float64).reshape(-1)
    n = int(x.size)
    if n == 0 or not np.isfinite(x).all():
        return Estimate(math.nan, math.nan, math.nan, n)
    if n == 1:
        return Estimate(float(x[0]), math.nan, math.nan, n)
    # Equal values can have a mean that differs from them in the last bit.
    error = float(x.std(ddof=1)) / math.sqrt(n) if np.ptp(x) else 0.0
    return Estimate(float(x.mean()), error, n - 1.0, n, seed_error=error)


def estimate_over_units(table_SU: Floats) -> Estimate:
    """Estimate a mean from a table; the trained models count as fixed.

    Args:
        table_SU: Values by seed and unit, (S, U).

    Returns:
        The estimate; its standard error is NaN below two units or if a value is not finite.
    """
    n, m = table_SU.shape
    if not table_SU.size or not np.isfinite(table_SU).all():
        return Estimate(math.nan, math.nan, math.nan, n, m)
    mean_U = table_SU.mean(0)
    if m < 2:
        return Estimate(float(mean_U.mean()), math.nan, math.nan, n, m)
    error = float(mean_U.std(ddof=1)) / math.sqrt(m)
    return Estimate(float(mean_U.mean()), error, m - 1.0, n, m, unit_error=error)


def estimate_two_way(table_SU: Floats) -> Estimate:
    """Estimate a mean from a table of which both the seeds and the units are random samples.

    The estimate of Var(mean) is (MS_seed + MS_unit - MS_error) / (n m), but at least the larger of MS_seed / (n m) and
    MS_unit / (n m). If that minimum is used, the degrees of freedom are its own.

    Args:
        table_SU: Values by seed and unit, (S, U).

    Returns:
        The estimate; its standard error is NaN below two seeds or two units, or if a value is not finite.
    """
    n, m = table_SU.shape
    if not table_SU.size or not np.isfinite(table_SU).all():
        return Estimate(math.nan, math.nan, math.nan, n, m)
    mean_S, mean_U = table_SU.mean(1), table_SU.mean(0)
    mean = float(mean_S.mean())
    if n < 2 or m < 2:
        return Estimate(mean, math.nan, math.nan, n, m)
    ms_seed = m * float(np.square(mean_S - mean).sum()) / (n - 1)
    ms_unit = n * float(np.square(mean_U - mean).sum()) / (m - 1)
    # Row by row, so that the residuals of a large table need no memory of its size.
    squares = sum(
        float(np.square(row_U - mean_U - (mean_s - mean)).sum()) for row_U, mean_s in zip(table_SU, mean_S, strict=True)
    )
    ms_error = squares / ((n - 1) * (m - 1))
    total, larger = ms_seed + ms_unit - ms_error, max(ms_seed, ms_unit)
    if larger == 0.0:
        df = math.inf
    elif total > larger:
        df = total**2 / (ms_seed**2 / (n - 1) + ms_unit**2 / (m - 1) + ms_error**2 / ((n - 1) * (m - 1)))
    else:
        df = n - 1.0 if ms_seed > ms_unit else m - 1.0
    size = n * m
    return Estimate(
        mean,
        math.sqrt(max(total, larger) / size),
        df,
        n,
        m,
        seed_error=math.sqrt(ms_seed / size),
        unit_error=math.sqrt(ms_unit / size),
        unit_floor=math.sqrt(max(0.0, ms_unit - ms_error) / size),
        seed_floor=math.sqrt(max(0.0, ms_seed - ms_error) / size),
    )


def influence_concentration(table_SU: Floats, units: int = CONCENTRATED_UNITS) -> float:
    """Return the fraction of the squared influence that the `units` most influential test units carry.

    Args:
        table_SU: Values by seed and unit, (S, U).
        units: Number of units.
    """
    square_U = np.square(table_SU.mean(0) - table_SU.mean())
    total = float(square_U.sum())
    if total == 0.0:
        return 0.0
    return float(np.sort(square_U)[-units:].sum()) / total


def bound_remaining_error(
    seeds: int,
    units: int,
    *,
    seed_error: float,
    unit_error: float,
    seed_floor: float,
    unit_floor: float,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return lower bounds of the fractions of a standard error that would stay with any number of seeds, and of test units.

    Let S, U and E be the expected mean squares of seeds, units and errors. With infinitely many seeds, the fraction f of the
    standard error stays, and 1 - f^2 = S / (S + U - E). S / U is bounded by the F distribution. U - E and S - E are taken as
    estimated, so the confidence is approximate: simulated with normal effects, a bound is too high in at most 7% of tables.
    If a few units have most of the influence, the units vary more than the estimate shows, and the second bound is too high.

    Args:
        seeds: Number of seeds.
        units: Number of test units.
        seed_error: Standard error over seeds, as in `Estimate`.
        unit_error: Standard error over test units.
        seed_floor: Standard error with infinitely many test units.
        unit_floor: Standard error with infinitely many seeds.
        confidence: Confidence of each bound.

    Returns:
        The bound for any number of seeds, and the bound for any number of test units.
    """
    bounds = []
    for floor, error, error_df, floor_df in (
        (unit_floor, seed_error, seeds - 1, units - 1),
        (seed_floor, unit_error, units - 1, seeds - 1),
    ):
        quantile = float(stats.f.ppf(1 - confidence, error_df, floor_df))
        bounds.append(math.sqrt(floor**2 / (floor**2 + error**2 / quantile)) if floor else 0.0)
    return bounds[0], bounds[1]
