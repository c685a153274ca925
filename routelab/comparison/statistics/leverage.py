"""Quality per FLOP: how many FLOPs dense models need for the loss that an arm reaches. Pure functions of numbers.

Axes: R rungs (sizes of a dense ladder, or budgets of an arm), N seeds, K targets. Every point is the end of a run with a schedule
of its own: points inside a decaying schedule flatter nobody fairly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from routelab.core.intervals import Interval
from routelab.core.pareto import front

Floats = NDArray[np.float64]
Point = tuple[float, float]
"""FLOPs (or parameters), loss."""

_RANGE = 33
"""Targets over which the mean log leverage is taken."""


@dataclass(frozen=True)
class Reach:
    """What a loss costs. bound: "=" interpolated; ">" not reached at this cost, the largest there is (censored); "<" the
    cheapest point is better already."""

    cost: float
    bound: Literal["=", ">", "<"]


@dataclass(frozen=True)
class Leverage:
    """Efficiency leverage of an arm over a dense frontier.

    at: loss -> EL with its interval, for losses that both reach. mean: exp of the mean log EL over the common range of
    losses, None where there is no range (an arm with one budget has one target, its own loss). n: seeds.
    """

    at: list[tuple[float, Interval]]
    mean: Interval | None
    n: int


def best_so_far(points: Sequence[Point]) -> list[Point]:
    """The lower envelope: by rising cost, every point that is better than all cheaper ones (L*(C), the Pareto front)."""
    finite = sorted({(cost, loss) for cost, loss in points if math.isfinite(cost) and math.isfinite(loss)})
    return [finite[index] for index in front(finite)]


def cost_to(target: float, points: Sequence[Point]) -> Reach:
    """The cost at which the envelope of `points` reaches a loss, interpolated linearly in (log cost, loss)."""
    envelope = best_so_far(points)
    if not envelope:
        raise ValueError("there are no finite points to reach a loss with")
    costs, losses = np.array(envelope).T
    if target > losses[0]:
        return Reach(float(costs[0]), "<")
    if target < losses[-1]:
        return Reach(float(costs[-1]), ">")
    return Reach(float(np.exp(np.interp(-target, -losses, np.log(costs)))), "=")


def log_leverage(dense: Sequence[Point], arm: Sequence[Point], targets: Sequence[float]) -> Floats:
    """log EL (K,) = log C_dense(L) - log C_arm(L); NaN where either is censored."""
    found = np.full(len(targets), np.nan)
    for k, target in enumerate(targets):
        ours, theirs = cost_to(target, arm), cost_to(target, dense)
        if ours.bound == theirs.bound == "=":
            found[k] = math.log(theirs.cost / ours.cost)
    return found


def common_range(dense: Sequence[Point], arm: Sequence[Point]) -> tuple[float, float] | None:
    """(lowest, highest) loss that both envelopes reach by interpolation; None if they share none."""
    fronts = best_so_far(dense), best_so_far(arm)
    if not all(fronts):
        return None
    low, high = max(front[-1][1] for front in fronts), min(front[0][1] for front in fronts)
    return (low, high) if low <= high else None


def leverage(
    dense_cost: Floats, dense_loss: Floats, arm_cost: Floats, arm_loss: Floats, targets: int = 3, confidence: float = 0.95
) -> Leverage:
    """Leverage of an arm (R', N) over a dense ladder (R, N), columns paired by seed.

    The envelopes are formed on the means over seeds (of log cost and of loss): the lower envelope of single runs would be
    too good. Intervals are t-intervals of jackknife pseudo-values of log EL: every seed is left out once, from the ladder and
    from the arm together. NaN bounds where leaving out a seed makes the target unreachable.
    """
    n = dense_loss.shape[1]
    if not (dense_cost.shape == dense_loss.shape and arm_cost.shape == arm_loss.shape and arm_loss.shape[1] == n):
        raise ValueError(
            f"costs and losses must be (rungs, seeds) with the same seeds, not {dense_cost.shape}, {dense_loss.shape}, "
            f"{arm_cost.shape}, {arm_loss.shape}"
        )
    everything = np.ones(n, bool)
    sides = _means(dense_cost, dense_loss, everything), _means(arm_cost, arm_loss, everything)
    shared = common_range(*sides)
    if shared is None:
        return Leverage([], None, n)
    low, high = shared
    wide = high > low
    # Inside the range: its very ends fall out of it as soon as a seed is left out.
    shown = [low + (high - low) * (k + 1) / (targets + 1) for k in range(targets)] if wide else [low]
    grid = [low + (high - low) * (k + 0.5) / _RANGE for k in range(_RANGE)] if wide else []

    def statistic(kept: NDArray[np.bool_]) -> Floats:
        dense, arm = _means(dense_cost, dense_loss, kept), _means(arm_cost, arm_loss, kept)
        if not wide:
            # One budget: its own loss is the target, whatever it is without this seed.
            return log_leverage(dense, arm, [best_so_far(arm)[-1][1]])
        along = log_leverage(dense, arm, grid)
        middle = np.nanmean(along) if not np.isnan(along).all() else np.nan
        return np.append(log_leverage(dense, arm, shown), middle)

    intervals = _jackknife(statistic, n, confidence)
    at = list(zip(shown, intervals[: len(shown)], strict=True))
    return Leverage(at, intervals[-1] if wide else None, n)


def effective_size(loss: float, ladder: Sequence[Point]) -> Reach:
    """Parameters of the dense model with this loss at equal data. ladder: (parameters, loss) of dense sizes."""
    return cost_to(loss, ladder)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area that points (FLOPs, loss) dominate below and left of `reference`, in units of log10 FLOPs times loss."""
    inside = [point for point in best_so_far(points) if point[0] < reference[0] and point[1] < reference[1]]
    ends = [cost for cost, _ in (*inside[1:], reference)] if inside else []
    return sum(math.log10(end / cost) * (reference[1] - loss) for (cost, loss), end in zip(inside, ends, strict=True))


def _means(cost: Floats, loss: Floats, kept: NDArray[np.bool_]) -> list[Point]:
    mean_cost, mean_loss = np.exp(np.log(cost[:, kept]).mean(1)), loss[:, kept].mean(1)
    return [(float(c), float(y)) for c, y in zip(mean_cost, mean_loss, strict=True)]


def _jackknife(statistic: Callable[[NDArray[np.bool_]], Floats], n: int, confidence: float) -> list[Interval]:
    """exp of the jackknife t-interval of each entry of `statistic(kept seeds)`."""
    whole = statistic(np.ones(n, bool))
    if n < 2:
        return [Interval(math.exp(value), math.nan, math.nan, n) for value in whole]
    without = np.array([statistic(np.arange(n) != seed) for seed in range(n)])
    pseudo = n * whole - (n - 1) * without
    half = stats.t.ppf(0.5 + confidence / 2, n - 1) * pseudo.std(0, ddof=1) / math.sqrt(n)
    return [
        Interval(math.exp(value), math.exp(value - width), math.exp(value + width), n)
        for value, width in zip(whole, half, strict=True)
    ]
