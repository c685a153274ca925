"""Confidence intervals of means, medians and ratios: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]


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
