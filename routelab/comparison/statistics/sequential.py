"""A t-test that holds at all interim analyses together, one after every seed. Pure functions of numbers.

The null hypothesis is that the paired differences d_1, d_2, ... (one for each seed) are normal with mean theta, their variance
unknown. Under a normal prior N(0, g) on the effect size (mean - theta) / deviation and the scale-free prior on the deviation
(right Haar, as the t-test itself has), the Bayes factor of n differences is a function of n and of their t statistic alone,

    e_n(theta) = (1 + n g)^(-1/2) * [(1 + t^2 / nu) / (1 + t^2 / (nu (1 + n g)))]^((nu + 1) / 2),     nu = n - 1,

and a martingale of mean 1 if theta is the mean (Lai 1976; Wang & Ramdas 2025, Anytime-valid t-tests and confidence sequences).
By Ville's inequality it ever reaches 1 / alpha with probability at most alpha, however many analyses there are: all the
theta with e_n(theta) < 1 / alpha are an interval that covers the mean at all n at once with probability 1 - alpha.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from routelab.comparison.statistics.contrast import Contrast
from routelab.comparison.statistics.power import seeds_needed
from routelab.comparison.statistics.skewness import widen_for_skewness
from routelab.core.intervals import Interval

State = Literal["better", "worse", "equivalent", "open"]

PRIOR_VARIANCE = 1.0
"""g: effects about as large as the deviation between seeds are what the test is quickest to settle."""


def e_value(differences: Sequence[float], theta: float = 0.0, prior_variance: float = PRIOR_VARIANCE) -> float:
    """e_n(theta) of differences (n,). 1 below two of them, NaN if one is not finite; inf where all are equal but not theta."""
    d = np.asarray(differences, dtype=np.float64).reshape(-1) - theta
    if not np.isfinite(d).all():
        return math.nan
    n = d.size
    if n < 2:
        return 1.0
    deviation = float(d.std(ddof=1))
    if deviation == 0.0:
        return 1.0 if not d.any() else math.inf
    square, nu, grown = n * (float(d.mean()) / deviation) ** 2, n - 1, 1 + n * prior_variance
    log = -0.5 * math.log(grown) + 0.5 * (nu + 1) * (math.log1p(square / nu) - math.log1p(square / (nu * grown)))
    return math.exp(min(log, 700.0))


def anytime_interval(differences: Sequence[float], alpha: float = 0.05, prior_variance: float = PRIOR_VARIANCE) -> Interval:
    """The interval that covers the mean difference at every look, with probability 1 - alpha for all looks together.

    Unbounded while n is so small that no t reaches 1 / alpha; NaN where there is no finite difference.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1")
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    n = int(d.size)
    if n == 0 or not np.isfinite(d).all():
        return Interval(math.nan, math.nan, math.nan, n)
    mean, square = float(d.mean()), settling_square(n, alpha, prior_variance)
    half = math.sqrt(square / n) * float(d.std(ddof=1)) if math.isfinite(square) else math.inf
    return Interval(mean, mean - half, mean + half, n)


def settling_square(n: int, alpha: float, prior_variance: float = PRIOR_VARIANCE) -> float:
    """The t^2 at which e_n reaches 1 / alpha; infinite while n is so small that none does."""
    if n < 2:
        return math.inf
    nu, grown = n - 1, 1 + n * prior_variance
    # e < 1 / alpha solved for t^2: the ratio in brackets may reach `bar`, and never reaches more than `grown`.
    bar = (math.sqrt(grown) / alpha) ** (2 / (nu + 1))
    return nu * (bar - 1) / (1 - bar / grown) if bar < grown else math.inf


def fewest_seeds(alpha: float) -> int:
    """Return the smallest number of seeds at which the anytime interval is bounded.

    Args:
        alpha: Level of the interval.
    """
    count = 2
    while not math.isfinite(settling_square(count, alpha)):
        count += 1
    return count


def seeds_to_settle(differences: Sequence[float], alpha: float, power: float = 0.8) -> int | None:
    """Return how many seeds the anytime interval needs so that one analysis alone decides a difference as large as this one.

    Args:
        differences: Differences so far, (n,).
        alpha: Level of the interval.
        power: Probability of a decision at that analysis.

    Returns:
        Number of seeds; None in the cases of `seeds_needed`.
    """
    return seeds_needed(differences, lambda n: settling_square(n, alpha), power)


@dataclass(frozen=True)
class InterimResult:
    """State of one arm at an interim analysis.

    Attributes:
        state: Verdict on the difference.
        interval: Interval that holds at all interim analyses together: that over seeds, widened by unit_half at both ends.
        level: Level that this arm is held to.
        unit_half: Part of the half width that covers test units; 0 if the interval does not cover them.
        limited: Whether the test set is the limit: no number of further seeds can decide.
    """

    state: State
    interval: Interval
    level: float
    unit_half: float
    limited: bool = False


def analyse_interim(
    contrasts: Mapping[str, Contrast],
    margin: float,
    alpha: float = 0.05,
    uncertainty: Sequence[str] = ("seeds", "examples"),
    first_look: int = 5,
    family: int = 0,
) -> dict[str, InterimResult]:
    """Test the differences in log loss of every arm at an interim analysis (negative = better).

    `better` or `worse`: the interval excludes 0. `equivalent`: it lies within +-margin, which was set beforehand. An arm's level
    is alpha / number of arms (Bonferroni). Over all arms and interim analyses together, a wrong "better", "worse" or "equivalent"
    has a probability of at most alpha. No more seeds are needed for an arm that is decided.

    The anytime interval over seeds is widened for skewness (`widen_for_skewness`), as it rests on normal differences.
    If the interval is to cover test units too, it is the interval over seeds at half of the level. A t-interval over units at
    the other half widens it. The standard error over units is the largest of all interim analyses so far, as the analyses may
    stop at a small one.

    Args:
        contrasts: Label of an arm -> its differences, seeds in the order of training.
        margin: Margin of equivalence.
        alpha: Level of all arms together.
        uncertainty: Sources of uncertainty that intervals are to cover.
        first_look: Smallest number of seeds at which an analysis was made.
        family: Number of arms that the level is divided among, if it is larger than the number of contrasts.

    Returns:
        Label of an arm -> its state.

    Raises:
        ValueError: if the margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}; it must be above 0")
    level = alpha / max(1, len(contrasts), family)
    return {arm: _analyse_contrast(contrast, margin, level, uncertainty, first_look) for arm, contrast in contrasts.items()}


def _analyse_contrast(
    contrast: Contrast, margin: float, level: float, uncertainty: Sequence[str], first_look: int
) -> InterimResult:
    covered = contrast.select_sources(uncertainty)
    over_seeds, unit_half = _seed_interval(contrast, level), 0.0
    if covered == ("seeds", "examples"):
        over_seeds, unit_half = _seed_interval(contrast, level / 2), _unit_half_width(contrast, level / 2, first_look)
    elif covered == ("examples",):
        # Two arms that do not depend on the seed: all analyses see the same numbers.
        over_seeds = Interval(over_seeds.mean, over_seeds.mean, over_seeds.mean, over_seeds.n)
        units = contrast.estimate(covered).interval(1 - level)
        unit_half = units.high - units.mean
    interval = Interval(over_seeds.mean, over_seeds.low - unit_half, over_seeds.high + unit_half, over_seeds.n)
    return InterimResult(_state(interval, margin), interval, level, unit_half, _is_limited(over_seeds, unit_half, margin))


def _seed_interval(contrast: Contrast, level: float) -> Interval:
    values = contrast.values_S.tolist()
    return widen_for_skewness(anytime_interval(values, level), values)


def _state(interval: Interval, margin: float) -> State:
    if interval.high < 0:
        return "better"
    if interval.low > 0:
        return "worse"
    return "equivalent" if -margin < interval.low and interval.high < margin else "open"


def _is_limited(over_seeds: Interval, unit_half: float, margin: float) -> bool:
    """Return whether neither a difference nor equivalence can be shown with any number of seeds, if the mean lies in over_seeds."""
    farthest = max(abs(over_seeds.low), abs(over_seeds.high))
    nearest = max(0.0, over_seeds.low, -over_seeds.high)
    return farthest < unit_half and nearest + unit_half >= margin


def _unit_half_width(contrast: Contrast, level: float, first_look: int) -> float:
    """Return the half width of the t-interval over units, with the largest standard error of all analyses so far."""
    n = len(contrast.values_S)
    counts = range(max(1, min(first_look, n)), n + 1)
    estimates = [contrast.with_first_seeds(count).estimate(("examples",)) for count in counts]
    error = max(estimate.standard_error for estimate in estimates)
    return float(stats.t.ppf(1 - level / 2, estimates[-1].degrees_of_freedom)) * error
