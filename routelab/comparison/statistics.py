"""Intervals, exact tests and power for arms that are paired by seed: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[Any]

EXACT_LIMIT = 16
"""Up to this many differences every assignment of signs is enumerated."""

_DRAWS = 100_000


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence bounds and the number of values behind it."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """The fields as a plain dict, the form that `summary.json` holds."""
        return asdict(self)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The t-interval of the mean. One value has a mean and NaN bounds; no value has neither.

    A value that is not finite makes the mean and the bounds NaN.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    n = int(x.size)
    if n == 0 or not np.isfinite(x).all():
        return Interval(math.nan, math.nan, math.nan, n)
    mean = float(x.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * float(x.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """The t-interval of the mean of `a - b`, whose entries belong together (the same seed)."""
    return mean_interval(_differences(a, b), confidence)


def ratio_interval(totals: Sequence[float] | Array, sizes: Sequence[float] | Array) -> Interval:
    """The ratio of two sums over independent groups, sum(totals) / sum(sizes), with its linearised 95% t-interval over the groups
    that have any size (Cochran, Sampling Techniques): the mean of values of which those in a group hang together."""
    total, size = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (totals, sizes))
    total, size = total[size > 0], size[size > 0]
    if not size.size:
        return mean_interval([])
    ratio = total.sum() / size.sum()
    return mean_interval(ratio + (total - ratio * size) / size.mean())


def grouped_interval(values: Sequence[float] | Array, group: Sequence[int] | Array) -> Interval:
    """The mean of values (N,) with its 95% t-interval over the groups, by number (N,), that they come from (`ratio_interval`)."""
    _, place = np.unique(group, return_inverse=True)
    return ratio_interval(np.bincount(place, values), np.bincount(place))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median and its distribution-free interval, from the k-th smallest value to the k-th largest.

    k is the largest for which a binomial with n halves leaves at least `confidence` between them (n >= 6 for 95%; NaN bounds
    below). `mean` holds the median.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    x = np.sort(np.asarray(values, dtype=np.float64).reshape(-1))
    n = int(x.size)
    if n == 0 or not np.isfinite(x).all():
        return Interval(math.nan, math.nan, math.nan, n)
    # So many values lie below the median with at most half of what may be left out.
    below = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))
    below -= stats.binom.cdf(below, n, 0.5) > (1 - confidence) / 2
    if below < 0:
        return Interval(float(np.median(x)), math.nan, math.nan, n)
    return Interval(float(np.median(x)), float(x[below]), float(x[n - 1 - below]), n)


def paired_p(differences: Sequence[float]) -> float:
    """The two-sided p-value of the paired t-test, from the differences.

    NaN below two (finite) differences. Differences that are all equal leave no doubt: 0, or 1 if they are 0.
    """
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    if d.size < 2 or not np.isfinite(d).all():
        return math.nan
    if d.min() == d.max():
        return float(d[0] == 0.0)
    return float(stats.ttest_1samp(d, 0.0).pvalue)


def sign_flip_p(differences: Sequence[float]) -> float:
    """The two-sided p-value of the sign-flip test: exact up to 16 differences, by 100,000 fixed random draws beyond.

    It asks how often random signs make a sum at least as far from zero as the one observed. NaN without (finite) differences.
    """
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    if d.size == 0 or not np.isfinite(d).all():
        return math.nan
    observed = abs(float(d.sum()))
    # Sums that are equal on paper differ in the last bits.
    bar = observed - 1e-12 * float(np.abs(d).sum())
    if d.size <= EXACT_LIMIT:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= bar))
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(10):
        signs = rng.integers(0, 2, size=(_DRAWS // 10, d.size), dtype=np.int8) * 2 - 1
        hits += int(np.count_nonzero(np.abs(signs @ d) >= bar))
    return (hits + 1) / (_DRAWS + 1)


def smallest_sign_flip_p(n: int) -> float:
    """The smallest two-sided p-value that `n` differences can reach in the exact sign-flip test."""
    return min(1.0, 2.0 ** (1 - n)) if n > 0 else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given. A NaN (no test was made) stays NaN and does not count."""
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p_values, dtype=np.float64)
    made = ~np.isnan(p)
    if made.any():
        p[made] = multipletests(p[made], method="holm")[1]
    return [float(value) for value in p]


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """The p-value of equivalence (two one-sided t-tests, TOST): small if the mean surely lies within +-margin.

    NaN below two (finite) differences. Differences that are all equal leave no doubt: 0 or 1.
    """
    from statsmodels.stats.weightstats import DescrStatsW

    if not margin > 0:
        raise ValueError(f"margin is {margin}; it must be above 0")
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    if d.size < 2 or not np.isfinite(d).all():
        return math.nan
    if d.std() == 0.0:
        return float(abs(d[0]) >= margin)
    return float(DescrStatsW(d).ttost_mean(-margin, margin)[0])


def bca_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The bias-corrected and accelerated bootstrap interval of the mean (Efron 1987), 10,000 fixed draws.

    None below 10 values, where it covers too little to be worth a line, and where all values are equal.
    """
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if x.size < 10 or not np.isfinite(x).all() or x.std() == 0.0:
        return None
    found = stats.bootstrap(
        (x,), np.mean, n_resamples=9_999, confidence_level=confidence, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(float(x.mean()), float(found.low), float(found.high), int(x.size))


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


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    if len(a) != len(b):
        raise ValueError(f"paired values must be equally many, not {len(a)} and {len(b)}")
    return [float(x) - float(y) for x, y in zip(a, b, strict=True)]
