"""Intervals of a mean that allow for skewed values, by Hall's transformation of the t statistic: pure functions of numbers.

With z = (mean - theta) / sd of n values and g their skewness, Hall's statistic is sqrt(n) h(z),

    h(z) = z + g z^2 / 3 + g^2 z^3 / 27 + g / (6 n),

whose distribution is closer to t's than that of sqrt(n) z if the values are skewed. h is monotone, and its inverse has a closed form.

Source: Hall, P. (1992). On the removal of skewness by transformation. Journal of the Royal Statistical Society B 54(1), 221-228.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from routelab.core.intervals import Interval

_MIN_SKEWNESS = 1e-6
"""Below it h is the identity up to rounding, and the formula of its inverse loses digits."""


def hall_transform(z: float, skewness: float, n: int) -> float:
    """Return h(z).

    Args:
        z: (mean - theta) / standard deviation.
        skewness: third central moment over the cube of the root mean square deviation, both with divisor n.
        n: number of values.
    """
    return z + skewness * z**2 / 3 + skewness**2 * z**3 / 27 + skewness / (6 * n)


def hall_inverse(u: float, skewness: float, n: int) -> float:
    """Return the z at which h(z) is `u`. Arguments as in `hall_transform`."""
    shifted = u - skewness / (6 * n)
    return shifted if abs(skewness) < _MIN_SKEWNESS else 3 / skewness * (math.cbrt(1 + skewness * shifted) - 1)


def widen_for_skewness(interval: Interval, differences: Sequence[float]) -> Interval:
    """Return the smallest interval that holds both `interval` and the one that Hall's statistic gives with the same critical value.

    The result covers every value that `interval` covers, so that its errors are no more frequent under any law.

    Args:
        interval: mean +- a critical value of t times the standard error of `differences`.
        differences: (n,) the values behind it.

    Returns:
        The wider interval; `interval` itself below 3 values, without spread, or if its bounds are not finite.
    """
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    half = interval.high - interval.mean
    if d.size < 3 or not math.isfinite(half) or d.min() == d.max():
        return interval
    n, mean, deviation = int(d.size), float(d.mean()), float(d.std(ddof=1))
    skewness = float(((d - mean) ** 3).mean()) / float(d.var()) ** 1.5
    critical = half / deviation
    low = mean - deviation * hall_inverse(critical, skewness, n)
    high = mean - deviation * hall_inverse(-critical, skewness, n)
    return Interval(interval.mean, min(interval.low, low), max(interval.high, high), interval.n)
