"""Paired tests with exact or Student's t distributions, and Holm's adjustment: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

EXACT_LIMIT = 16
"""Up to this many differences every assignment of signs is enumerated."""

_DRAWS = 100_000


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
    # A single p-value stays as it is; statsmodels collects garbage at each call, which takes a third of a second here.
    if made.sum() > 1:
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
