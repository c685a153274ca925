"""Power of paired tests: the seeds that a difference needs, and the difference that seeds can detect."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, stats


def seeds_needed(
    differences: Sequence[float], power: float = 0.8, alpha: float = 0.05, bar: Callable[[int], float] | None = None
) -> int | None:
    """How many pairs a paired t-test needs to find the mean difference seen here, if it and its spread are true.

    bar: n -> the t^2 that n pairs must reach, instead of that of a two-sided t-test at alpha. An estimate from few pairs is
    rough. None below two differences, for a mean of 0, and beyond 100,000.
    """
    bar = bar or (lambda n: _bar(n, alpha))
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    if d.size < 2 or not np.isfinite(d).all() or d.mean() == 0.0:
        return None
    if d.std(ddof=1) == 0.0:
        return 2
    effect = abs(float(d.mean())) / float(d.std(ddof=1))
    # By hand: statsmodels' solver does not converge for large effects.
    low, high = 1, 2
    while _power(effect * math.sqrt(high), high, bar(high)) < power:
        low, high = high, 2 * high
        if high > 100_000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = _power(effect * math.sqrt(middle), middle, bar(middle)) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def _bar(n: int, alpha: float) -> float:
    """The t^2 at which a two-sided t-test on n differences rejects."""
    return float(stats.t.ppf(1 - alpha / 2, n - 1) ** 2)


def _power(shift: float, n: int, bar: float) -> float:
    """How often t^2 of n differences, whose mean is `shift` standard errors from 0, exceeds `bar`."""
    # The square of a noncentral t: both tails at once, where scipy's far tail of the t itself is NaN.
    return float(stats.ncf.sf(bar, 1, n - 1, shift**2)) if math.isfinite(bar) else 0.0


def detectable_difference(differences: Sequence[float], power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean difference that a two-sided paired t-test on as many pairs finds with this power.

    The spread is that of the differences given. NaN below two differences.
    """
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    effect = detectable_effect(max(2, int(d.size)), power, alpha)
    return effect * float(d.std(ddof=1)) if d.size > 1 and np.isfinite(d).all() else math.nan


def detectable_effect(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """`detectable_difference` of n >= 2 pairs in units of the differences' standard deviation, under the noncentral t."""
    if not 0.0 < alpha < power < 1.0:
        raise ValueError(f"power and alpha must satisfy 0 < alpha < power < 1, not alpha={alpha}, power={power}")
    upper = float(stats.t.ppf(1 - alpha / 2, n - 1) + stats.t.ppf(power, n - 1))
    bar = _bar(n, alpha)
    while _power(upper, n, bar) < power:
        upper *= 2
    return float(optimize.brentq(lambda shift: _power(shift, n, bar) - power, 1e-9, upper)) / math.sqrt(n)
