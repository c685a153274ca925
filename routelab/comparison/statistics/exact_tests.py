"""The exact sign-flip test, and Holm's adjustment: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

EXACT_LIMIT = 16
"""Up to this many differences every assignment of signs is enumerated."""

_DRAWS = 100_000


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
    is_tested = ~np.isnan(p)
    # A single p-value stays as it is; statsmodels collects garbage at each call, which takes a third of a second here.
    if is_tested.sum() > 1:
        p[is_tested] = multipletests(p[is_tested], method="holm")[1]
    return [float(value) for value in p]
