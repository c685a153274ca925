"""Seeds whose paired difference lies far from those of the other seeds, by Grubbs' test: pure functions of numbers.

A verdict over few seeds can depend on a single seed. Grubbs' statistic is G = max |d - mean| / sd with n - 1 in the deviation. It
is a monotone function of the largest externally studentised residual, the t of a seed against the others. At n = 3 it is also one
of max |d - median| / MAD. Normal values exceed

    (n - 1) / sqrt(n) * sqrt(t^2 / (n - 2 + t^2)),     t = the 1 - rate / (2 n) quantile of Student's t with n - 2 df,

with a probability of at most `rate`, by Bonferroni over the seeds. The bound is equal to the rate wherever two seeds cannot exceed
it at once, and otherwise close: .0500 to .0505 at rate .05, n = 3 to 20 (simulated, standard error .0005).

Source: Grubbs, F. E. (1969). Procedures for detecting outlying observations in samples. Technometrics 11(1), 1-21.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

OUTLYING_RATE = 0.05
"""Fraction of comparisons with normal differences in which some seed is called outlying."""

_MAX_ROUNDING = 1e-12
"""Differences whose range is at most this fraction of the largest one count as equal."""


def outlying_threshold(n: int, rate: float = OUTLYING_RATE) -> float:
    """Return the distance from the mean, in standard deviations, beyond which one of `n` seeds is outlying.

    Args:
        n: number of seeds.
        rate: fraction of comparisons with normal differences in which the largest distance exceeds the threshold.

    Returns:
        Grubbs' two-sided critical value; infinity below 3 seeds, of which none can be outlying.

    Raises:
        ValueError: if `rate` does not lie between 0 and 1.
    """
    if not 0.0 < rate < 1.0:
        raise ValueError(f"rate is {rate}; it must lie between 0 and 1")
    if n < 3:
        return math.inf
    square = float(stats.t.ppf(1 - rate / (2 * n), n - 2)) ** 2
    return (n - 1) / math.sqrt(n) * math.sqrt(square / (n - 2 + square))


def outlying_seeds(differences: Sequence[float], rate: float = OUTLYING_RATE) -> list[int]:
    """Return the positions of the seeds whose difference lies beyond `outlying_threshold`.

    The mean and the standard deviation include the seed itself, so that several bad seeds can hide each other.

    Args:
        differences: (n,) one paired difference for each seed.
        rate: as in `outlying_threshold`.

    Returns:
        Positions in `differences`, ascending. Empty below 3 values, if all are equal up to rounding, and if one is not finite.
    """
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    threshold = outlying_threshold(int(d.size), rate)
    if d.size < 3 or not np.isfinite(d).all() or np.ptp(d) <= _MAX_ROUNDING * np.abs(d).max():
        return []
    distances = np.abs(d - d.mean()) / d.std(ddof=1)
    return [int(position) for position in np.flatnonzero(distances > threshold)]
