"""Intervals, exact tests and power for arms that are paired by seed: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

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
    adjusted = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def detectable_difference(differences: Sequence[float], power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean difference that a two-sided paired t-test on as many pairs finds with this power.

    The spread is that of the differences given; the effect is solved for under the noncentral t. NaN below two differences.
    """
    if not 0.0 < alpha < power < 1.0:
        raise ValueError(f"power and alpha must satisfy 0 < alpha < power < 1, not alpha={alpha}, power={power}")
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    if d.size < 2 or not np.isfinite(d).all():
        return math.nan
    df = int(d.size) - 1
    critical = float(stats.t.ppf(1 - alpha / 2, df))

    def shortfall(shift: float) -> float:
        # The square of a noncentral t: both tails at once, where scipy's far tail of the t itself is NaN.
        return float(stats.ncf.sf(critical**2, 1, df, shift**2)) - power

    upper = critical + float(stats.t.ppf(power, df))
    while shortfall(upper) < 0:
        upper *= 2
    shift = float(optimize.brentq(shortfall, 1e-9, upper))
    return shift * float(d.std(ddof=1)) / math.sqrt(d.size)


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    if len(a) != len(b):
        raise ValueError(f"paired values must be equally many, not {len(a)} and {len(b)}")
    return [float(x) - float(y) for x, y in zip(a, b, strict=True)]
