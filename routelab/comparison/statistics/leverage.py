"""Quality per FLOP: how many FLOPs dense models need for the loss that an arm reaches. Pure functions of numbers.

Axes: R rungs (sizes of a dense ladder, or budgets of an arm), N seeds, K targets, G groups of test units. Every point is the end
of a run with a schedule of its own: points inside a decaying schedule flatter nobody fairly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
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
    losses, None where there is no range (an arm with one budget has one target, its own loss). n: seeds. covered: sources of
    uncertainty that the intervals cover.
    """

    at: list[tuple[float, Interval]]
    mean: Interval | None
    n: int
    covered: tuple[str, ...] = ()


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
    """Return log EL = log C_dense(L) - log C_arm(L) at each target L, (K,); NaN if either side does not reach it.

    Args:
        dense: Endpoints of the dense ladder.
        arm: Endpoints of the arm.
        targets: Losses, (K,).
    """
    loss_K = np.asarray(targets, dtype=np.float64)
    return _log_cost(dense, loss_K) - _log_cost(arm, loss_K)


def _log_cost(points: Sequence[Point], loss_K: Floats) -> Floats:
    """Return the log of the cost at which the envelope of some points reaches each loss, (K,); NaN outside its range."""
    envelope = best_so_far(points)
    if not envelope:
        raise ValueError("there are no finite points to reach a loss with")
    costs, losses = np.array(envelope).T
    is_reached = (loss_K <= losses[0]) & (loss_K >= losses[-1])
    return np.where(is_reached, np.interp(-loss_K, -losses, np.log(costs)), math.nan)


def common_range(dense: Sequence[Point], arm: Sequence[Point]) -> tuple[float, float] | None:
    """(lowest, highest) loss that both envelopes reach by interpolation; None if they share none."""
    fronts = best_so_far(dense), best_so_far(arm)
    if not all(fronts):
        return None
    low, high = max(front[-1][1] for front in fronts), min(front[0][1] for front in fronts)
    return (low, high) if low <= high else None


@dataclass(frozen=True)
class Endpoints:
    """Endpoints of the training runs of an arm.

    Attributes:
        cost: Training FLOPs, (R, N).
        loss: Mean test losses, (R, N).
        loss_without: Mean test losses without each group of test units, (G, R, N); None if the runs recorded no test units.
    """

    cost: Floats
    loss: Floats
    loss_without: Floats | None = None


def leverage(
    dense: Endpoints,
    arm: Endpoints,
    targets: int = 3,
    confidence: float = 0.95,
    uncertainty: Collection[str] = ("seeds", "examples"),
) -> Leverage:
    """Estimate the efficiency leverage of an arm over a dense ladder, with endpoints paired by seed and by test unit.

    The envelopes are formed on the means over seeds (of log cost and of loss): the lower envelope of single runs would be
    too good. The variance of log EL is that of a jackknife over seeds plus that of a jackknife over groups of test units. Each of
    them leaves out a seed, or a group, from the ladder and from the arm together. The degrees of freedom are Satterthwaite's.
    Bounds are NaN if the target cannot be reached without a seed or a group.

    Args:
        dense: Endpoints of the ladder, of R rungs.
        arm: Endpoints of the arm, of its own rungs and the same seeds and groups.
        targets: Number of losses at which the leverage is given.
        confidence: Confidence of the intervals.
        uncertainty: Sources of uncertainty that intervals cover, "seeds" and "examples". Without recorded test units, intervals
            cover seeds alone.

    Raises:
        ValueError: if shapes do not fit.
    """
    n = dense.loss.shape[1]
    shapes = [dense.cost.shape, dense.loss.shape, arm.cost.shape, arm.loss.shape]
    if not (shapes[0] == shapes[1] and shapes[2] == shapes[3] and arm.loss.shape[1] == n):
        raise ValueError(f"costs and losses must be (rungs, seeds) with the same seeds, not {', '.join(map(str, shapes))}")
    everything = np.ones(n, bool)
    sides = _means(dense.cost, dense.loss, everything), _means(arm.cost, arm.loss, everything)
    shared = common_range(*sides)
    if shared is None:
        return Leverage([], None, n)
    low, high = shared
    wide = high > low
    # Inside the range: its very ends fall out of it as soon as a seed is left out.
    shown = [low + (high - low) * (k + 1) / (targets + 1) for k in range(targets)] if wide else [low]
    grid = [low + (high - low) * (k + 0.5) / _RANGE for k in range(_RANGE)] if wide else []

    def statistic(kept_N: NDArray[np.bool_], dense_loss: Floats, arm_loss: Floats) -> Floats:
        dense_points, arm_points = _means(dense.cost, dense_loss, kept_N), _means(arm.cost, arm_loss, kept_N)
        if not wide:
            # One budget: its own loss is the target, also without a seed or a group.
            return log_leverage(dense_points, arm_points, [best_so_far(arm_points)[-1][1]])
        along = log_leverage(dense_points, arm_points, grid)
        middle = np.nanmean(along) if not np.isnan(along).all() else np.nan
        return np.append(log_leverage(dense_points, arm_points, shown), middle)

    estimate = statistic(everything, dense.loss, arm.loss)
    components: dict[str, tuple[Floats, int]] = {}
    has_units = dense.loss_without is not None and arm.loss_without is not None
    if "seeds" in uncertainty or not has_units:
        without = [statistic(np.arange(n) != seed, dense.loss, arm.loss) for seed in range(n)] if n > 1 else []
        components["seeds"] = _jackknife_variance(without, estimate), n - 1
    if "examples" in uncertainty and dense.loss_without is not None and arm.loss_without is not None:
        without = [statistic(everything, *losses) for losses in zip(dense.loss_without, arm.loss_without, strict=True)]
        components["examples"] = _jackknife_variance(without, estimate), len(without) - 1
    intervals = _intervals(estimate, list(components.values()), n, confidence)
    at = list(zip(shown, intervals[: len(shown)], strict=True))
    return Leverage(at, intervals[-1] if wide else None, n, tuple(components))


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


def _jackknife_variance(without: Sequence[Floats], estimate: Floats) -> Floats:
    """Return the jackknife variance of each entry of an estimate, (K,); NaN below two values.

    Source: Efron & Stein 1981, The jackknife estimate of variance, Annals of Statistics 9(3).

    Args:
        without: Estimates without each of the seeds or groups, (K,) each.
        estimate: Estimate with all of them, (K,).
    """
    if len(without) < 2:
        return np.full_like(estimate, math.nan)
    values = np.array(without)
    return (len(values) - 1) / len(values) * np.square(values - values.mean(0)).sum(0)


def _intervals(estimate: Floats, components: Sequence[tuple[Floats, int]], n: int, confidence: float) -> list[Interval]:
    """Return exp of the t-interval of each entry of an estimate.

    Args:
        estimate: Estimates, (K,).
        components: Variances (K,) that add up, each with its degrees of freedom.
        n: Number of seeds.
        confidence: Confidence of the intervals.
    """
    variance = np.sum([component for component, _ in components], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = variance**2 / np.sum([component**2 / max(1, freedom) for component, freedom in components], 0)
        # Without any variance there is no width, whatever the quantile.
        half = np.where(variance == 0.0, 0.0, stats.t.ppf(0.5 + confidence / 2, df) * np.sqrt(variance))
    return [
        Interval(math.exp(value), math.exp(value - width), math.exp(value + width), n)
        for value, width in zip(estimate, half, strict=True)
    ]
