"""Draw the effects of seeds and test units, and tables of both, for docs/statistics/interval_coverage.py.

All effects are standardised: their expectation is 0 and their variance 1. `interval_coverage.scale` gives them their parts of the
variance.

Axes: R tables (draws), S seeds, U test units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routelab.comparison.statistics.influence import metric_with_influence
from routelab.comparison.statistics.two_way import CONCENTRATED_UNITS

Array = NDArray[np.float64]
Fractions = tuple[float, float, float]
"""Parts of seed effects, unit effects and errors in the variance of the mean."""

MAX_BATCH_VALUES = 4_000_000
RATIO_STANDARD_ERROR = 0.03
"""Standard error of the difference of log losses in the law "ratio of sums"."""
LENGTH_SIGMA = 1.0
"""Standard deviation of the log length of a document."""
DIFFICULTY_SIGMA = 0.3
"""Standard deviation of the log loss per token of a document, common to both arms."""


def _lognormal(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Array:
    variance = math.expm1(sigma**2) * math.exp(sigma**2)
    return (np.exp(sigma * rng.standard_normal(shape)) - math.exp(sigma**2 / 2)) / math.sqrt(variance)


EFFECTS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape) / math.sqrt(3),
    "exponential": lambda rng, shape: rng.standard_exponential(shape) - 1,
    "lognormal 1": lambda rng, shape: _lognormal(rng, shape, 1.0),
    "lognormal 2": lambda rng, shape: _lognormal(rng, shape, 2.0),
}
"""Laws of an effect, with mean 0 and standard deviation 1. The number is sigma, the standard deviation of the logarithm."""

LAWS = {
    "normal": ("normal", "normal"),
    "exponential seeds": ("exponential", "normal"),
    "lognormal seeds": ("lognormal 1", "normal"),
    "t3 units": ("normal", "t3"),
    "lognormal units": ("normal", "lognormal 2"),
    "lognormal units and errors": ("normal", "lognormal 2"),
}
"""Law -> laws of the seed effects and of the unit effects."""
SCALED_LAW, RATIO_LAW = "lognormal units and errors", "ratio of sums"


@dataclass(frozen=True)
class Effects:
    """Standardised effects of one factor (seeds or units), and the errors averaged over the other factor: all (R,).

    Attributes:
        mean: Mean of the effects, times the square root of their number.
        squares: Sum of squared deviations of the effects.
        products: Sum of products of these deviations with those of the averaged errors.
        error_squares: Sum of squared deviations of the averaged errors.
        concentration: Fraction of `squares` that the ten largest deviations carry; None if the effects were not drawn one by one.
    """

    mean: Array
    squares: Array
    products: Array
    error_squares: Array
    concentration: Array | None = None


def measure_concentration(effect_RU: Array) -> Array:
    """Return the fraction of the squared deviations that the ten largest carry, (R,)."""
    square_RU = np.square(effect_RU - effect_RU.mean(1, keepdims=True))
    units = square_RU.shape[1]
    if units <= CONCENTRATED_UNITS:
        return np.ones(len(square_RU))
    return np.partition(square_RU, units - CONCENTRATED_UNITS, axis=1)[:, -CONCENTRATED_UNITS:].sum(1) / square_RU.sum(1)


def _batches(draws: int, values_per_draw: int) -> Iterator[int]:
    """Yield batch sizes that add up to `draws`."""
    size = max(1, MAX_BATCH_VALUES // values_per_draw)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def draw_effects(rng: np.random.Generator, law: str, count: int, draws: int) -> Effects:
    """Draw the effects of `count` seeds or units. Errors are normal, with variance 1 after averaging."""
    concentration = None
    if law == "normal":
        mean, squares = rng.standard_normal(draws), rng.chisquare(count - 1, draws)
    else:
        means, sums, concentrations = [], [], []
        for size in _batches(draws, count):
            values = EFFECTS[law](rng, (size, count))
            means.append(values.mean(1) * math.sqrt(count))
            sums.append(values.var(1) * count)
            concentrations.append(measure_concentration(values))
        mean, squares, concentration = (np.concatenate(batches) for batches in (means, sums, concentrations))
    # The errors' deviations have a normal component along the deviations of the effects, and count - 2 orthogonal to them.
    along = rng.standard_normal(draws)
    return Effects(mean, squares, np.sqrt(squares) * along, along**2 + rng.chisquare(count - 2, draws), concentration)


@dataclass(frozen=True)
class Draws:
    """Random parts of R tables with standardised effects and errors; `scale` adds them up with the shares of the variance."""

    seed: Effects
    unit: Effects
    error_mean: Array
    error_squares: Array
    seeds: int
    units: int


def draw_tables(rng: np.random.Generator, seed: Effects, unit: Effects, seeds: int, units: int) -> Draws:
    """Add the grand mean of normal errors (times sqrt(n m)) and the sum of squared residuals."""
    draws = len(seed.mean)
    return Draws(seed, unit, rng.standard_normal(draws), rng.chisquare((seeds - 1) * (units - 1), draws), seeds, units)


def draw_scaled_tables(rng: np.random.Generator, seeds: int, units: int, draws: int) -> Draws:
    """Draw tables of the law "lognormal units and errors" cell by cell."""
    batches = []
    for size in _batches(draws, seeds * units):
        a_RS = EFFECTS[LAWS[SCALED_LAW][0]](rng, (size, seeds))
        b_RU = EFFECTS[LAWS[SCALED_LAW][1]](rng, (size, units))
        error_RSU = b_RU[:, None, :] * rng.standard_normal((size, seeds, units))
        row_RS, column_RU, mean_R = error_RSU.mean(2), error_RSU.mean(1), error_RSU.mean((1, 2))
        # Averages are scaled to variance 1, as in `draw_effects`.
        row_RS, column_RU = math.sqrt(units) * (row_RS - mean_R[:, None]), math.sqrt(seeds) * (column_RU - mean_R[:, None])
        total_R = np.square(error_RSU).sum((1, 2)) - seeds * units * mean_R**2
        residual_R = total_R - np.square(row_RS).sum(1) - np.square(column_RU).sum(1)
        batch = []
        for effect, average in ((a_RS, row_RS), (b_RU, column_RU)):
            count, deviation = effect.shape[1], effect - effect.mean(1, keepdims=True)
            sums = (np.square(deviation), deviation * average, np.square(average))
            batch += [effect.mean(1) * math.sqrt(count), *(x.sum(1) for x in sums), measure_concentration(effect)]
        batches.append([*batch, mean_R * math.sqrt(seeds * units), residual_R])
    columns = [np.concatenate(column) for column in zip(*batches, strict=True)]
    return Draws(Effects(*columns[:5]), Effects(*columns[5:10]), columns[10], columns[11], seeds, units)


def draw_ratio_tables(
    rng: np.random.Generator, seeds: int, units: int, fractions: Fractions, draws: int
) -> tuple[Array, float]:
    """Draw tables of differences of two arms' log losses, each row with the influences of the units.

    A document has a lognormal length w. The loss of an arm on it is w times its difficulty times the exponential of normal effects
    of the seed, the unit and both. One half of the variance between units follows log w: the arms differ more on long documents.

    Returns:
        The tables (R, S, U), and the expectation of log mean loss of the first arm minus that of the second, over seeds and
        documents of the population.
    """
    seed, unit, error = (fraction * RATIO_STANDARD_ERROR**2 for fraction in fractions)
    # Influences are weighted by w / E w, whose mean square is exp(LENGTH_SIGMA^2).
    weight = math.exp(LENGTH_SIGMA**2)
    unit_sigma, error_sigma = math.sqrt(units * unit / weight / 2), math.sqrt(seeds * units * error / weight)
    slope = math.sqrt(units * unit / weight / 2 / (1 + LENGTH_SIGMA**2))
    table_RSU = np.empty((draws, seeds, units))
    for r in range(draws):
        z_U = rng.standard_normal(units)
        count_U = np.exp(LENGTH_SIGMA * z_U)
        base_U = count_U * np.exp(DIFFICULTY_SIGMA * rng.standard_normal(units))
        # Each arm has half of the variance of the difference; the first one has the slope.
        effect_2U = unit_sigma * math.sqrt(0.5) * rng.standard_normal((2, units))
        effect_2U[0] += slope * z_U
        seed_2S = math.sqrt(seeds * seed / 2) * rng.standard_normal((2, seeds))
        error_2SU = error_sigma * math.sqrt(0.5) * rng.standard_normal((2, seeds, units))
        loss_2SU = base_U * np.exp(seed_2S[:, :, None] + effect_2U[:, None, :] + error_2SU)
        for s in range(seeds):
            (first, first_U), (second, second_U) = (
                metric_with_influence("log_loss", {"loss": loss_2SU[arm, s], "count": count_U}) for arm in (0, 1)
            )
            table_RSU[r, s] = first - second + first_U - second_U
    return table_RSU, ((LENGTH_SIGMA + slope) ** 2 - LENGTH_SIGMA**2) / 2
