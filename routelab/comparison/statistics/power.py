"""Power of paired tests: the seeds that a difference needs, and the difference that seeds can detect."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, stats


def seeds_needed(differences: Sequence[float], bar: Callable[[int], float], power: float = 0.8) -> int | None:
    """Return how many pairs a test needs to find the mean difference of these pairs, if it and its spread are true.

    An estimate from few pairs is rough.

    Args:
        differences: Differences of the pairs, (n,).
        bar: Function from a number of pairs to the t^2 at which the test rejects.
        power: Probability of a rejection.

    Returns:
        Number of pairs. None below two differences, for a mean of 0, and beyond 100,000.
    """
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    if d.size < 2 or not np.isfinite(d).all() or d.mean() == 0.0:
        return None
    if d.std(ddof=1) == 0.0:
        return 2
    effect = abs(float(d.mean())) / float(d.std(ddof=1))
    # By hand: statsmodels' solver does not converge for large effects.
    low, high = 1, 2
    while _power(effect * math.sqrt(high), high - 1, bar(high)) < power:
        low, high = high, 2 * high
        if high > 100_000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = _power(effect * math.sqrt(middle), middle - 1, bar(middle)) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def _power(shift: float, degrees_of_freedom: float, bar: float) -> float:
    """Return the probability that t^2 exceeds `bar`, if the true mean is `shift` standard errors from 0."""
    # The square of a noncentral t: both tails at once, where scipy's far tail of the t itself is NaN.
    return float(stats.ncf.sf(bar, 1, degrees_of_freedom, shift**2)) if math.isfinite(bar) else 0.0


def detectable_effect(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest true mean difference that a two-sided paired t-test finds with this power.

    Args:
        n: Number of pairs, at least 2.
        power: Probability of a rejection.
        alpha: Level of the test.

    Returns:
        The difference in standard deviations of the differences.
    """
    return detectable_shift(n - 1.0, power, alpha) / math.sqrt(n)


def detectable_shift(degrees_of_freedom: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest true mean that a two-sided t-test finds with this power, in standard errors of the mean.

    Args:
        degrees_of_freedom: Degrees of freedom of the t statistic.
        power: Probability of a rejection, under the noncentral t distribution.
        alpha: Level of the test.

    Raises:
        ValueError: unless 0 < alpha < power < 1.
    """
    if not 0.0 < alpha < power < 1.0:
        raise ValueError(f"power and alpha must satisfy 0 < alpha < power < 1, not alpha={alpha}, power={power}")
    critical = float(stats.t.ppf(1 - alpha / 2, degrees_of_freedom))
    upper = critical + float(stats.t.ppf(power, degrees_of_freedom))
    while _power(upper, degrees_of_freedom, critical**2) < power:
        upper *= 2
    return float(optimize.brentq(lambda shift: _power(shift, degrees_of_freedom, critical**2) - power, 1e-9, upper))
