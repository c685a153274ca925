"""Several data sets: one figure for an arm over all of them, and ranks. Pure functions of numbers.

Differences are in log loss, paired by seed, arm minus reference (negative = better), so that data sets with large and with small
losses count alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from routelab.core.intervals import Interval

_DRAWS = 10_000
FEWEST_FOR_RANKS = 5
"""Data sets below which a test of ranks says nothing."""


def interquartile_mean(differences: Mapping[str, Sequence[float]], confidence: float = 0.95) -> Interval:
    """Mean of the middle half of all differences, data sets and seeds together (Agarwal et al. 2021, rliable).

    differences: data set -> those of its seeds. The interval is a percentile bootstrap of 10,000 fixed draws, stratified: the
    seeds are drawn anew within each data set. n is the number of data sets. NaN without differences.
    """
    groups = [np.asarray(values, dtype=np.float64) for values in differences.values() if len(values)]
    if not groups or not all(np.isfinite(group).all() for group in groups):
        return Interval(math.nan, math.nan, math.nan, len(groups))
    rng = np.random.default_rng(0)
    drawn = np.concatenate([group[rng.integers(0, group.size, (_DRAWS, group.size))] for group in groups], axis=1)
    low, high = np.quantile(stats.trim_mean(drawn, 0.25, axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(stats.trim_mean(np.concatenate(groups), 0.25)), float(low), float(high), len(groups))


def probability_of_improvement(arm: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]) -> float:
    """How likely a run of the arm has a lower loss than a run of the reference, a tie counting half; mean over data sets.

    Losses by data set, of all seeds. The Mann-Whitney statistic over its largest value. NaN without a shared data set.
    """
    shared = [name for name in arm if len(arm[name]) and len(reference.get(name, ()))]
    if not shared:
        return math.nan
    shares = []
    for name in shared:
        # U counts the pairs in which the first is larger.
        larger = stats.mannwhitneyu(reference[name], arm[name]).statistic
        shares.append(float(larger) / (len(arm[name]) * len(reference[name])))
    return float(np.mean(shares))


@dataclass(frozen=True)
class Ranks:
    """mean: arm -> its mean rank over data sets, 1 is the lowest loss. p: of Friedman's test that all arms rank alike.

    critical: mean ranks further apart than this differ at the level given (Nemenyi; Demsar 2006).
    """

    mean: dict[str, float]
    p: float
    critical: float


def ranks(losses: Mapping[str, Mapping[str, float]], level: float = 0.05) -> Ranks | None:
    """Ranks of arms over the data sets that all of them were trained on. losses: arm -> data set -> mean loss.

    None below five such data sets or three arms.
    """
    shared = sorted(set.intersection(*(set(of_arm) for of_arm in losses.values()))) if losses else []
    if len(shared) < FEWEST_FOR_RANKS or len(losses) < 3:
        return None
    table = np.array([[losses[arm][name] for arm in losses] for name in shared])
    placed = stats.rankdata(table, axis=1).mean(0)
    k, n = len(losses), len(shared)
    critical = float(stats.studentized_range.ppf(1 - level, k, np.inf)) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    p = float(stats.friedmanchisquare(*table.T).pvalue)
    return Ranks(dict(zip(losses, map(float, placed), strict=True)), p, critical)
