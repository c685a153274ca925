"""Endpoints, the dense frontier among them, and what every arm's loss costs on it; FLOPs and time to a target inside curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from routelab.comparison.grid import Row, ladder_rows
from routelab.comparison.metric_tables import MetricTables
from routelab.comparison.statistics.leverage import (
    Endpoints,
    Leverage,
    best_so_far,
    cost_to,
    effective_size,
    hypervolume,
    leverage,
)
from routelab.core.intervals import Interval, mean_interval
from routelab.records.derived_values import curve_points, spent

_BEYOND = 10.0
"""How many times dearer than the dearest endpoint the reference point of the hypervolume is."""


def frontier_of(
    records: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    reference: str | None,
    tables: MetricTables | None = None,
    uncertainty: Collection[str] = ("seeds", "examples"),
) -> dict[str, Any] | None:
    """Return the dense frontier, and what each arm's loss costs on it. FLOPs are those of `spent`.

    Args:
        records: One record for each row and seed.
        rows: Arms at their sizes and budgets.
        reference: Label of the dense reference, None if there is none.
        tables: Tables by test unit; None = without test units.
        uncertainty: Sources of uncertainty that intervals cover.

    Returns:
        None without a ladder of at least two dense endpoints. Otherwise a mapping:
        `points`: label, training FLOPs and test loss of every dense endpoint, means over seeds.
        `front`: Those of the lower envelope.
        `pareto`: Labels of the rows, of all arms, that no other row beats in both.
        `reference_point`: Reference point of the hypervolumes.
        `arms`: Label -> results of the arm, with these keys.
        `own`: Leverage at the arm's own loss.
        `at`: Leverage at three losses, if the arm was trained with several budgets.
        `mean`: Geometric mean of the leverage over the common range of losses.
        `effective_size`: Dense size with the arm's loss; None if the ladder and the arm did not see as much data.
        `hypervolume`: Hypervolume of the arm's endpoints.
    """
    dense = list(ladder_rows(rows, reference)) if reference else []
    # References outside the loop spend no FLOPs that could be counted, and have no place here.
    counted = [record for record in records if record.get("flops_model")]
    good = {row.label: _by_seed(counted, row.label) for row in rows}
    dense = [row for row in dense if good[row.label]]
    if len(dense) < 2:
        return None
    seeds = set.intersection(*(set(good[row.label]) for row in dense))
    if not seeds:
        return None
    points = {row.label: _mean_point(good[row.label], sorted(seeds)) for row in dense}
    ends = {label: _mean_point(runs, sorted(runs)) for label, runs in good.items() if runs}
    everything = list(ends.values())
    corner = (_BEYOND * max(cost for cost, _ in everything), max(loss for _, loss in everything))
    ladder = [row for row in dense if row.share == 1.0]
    sizes = [(float(next(iter(good[row.label].values()))["total_params"]), points[row.label][1]) for row in ladder]
    arms = {}
    for label in dict.fromkeys(row.arm for row in rows if row.arm != reference):
        mine = [row for row in rows if row.arm == label and good[row.label]]
        whole = [row for row in mine if row.is_main]
        shared = sorted(seeds.intersection(*(set(good[row.label]) for row in mine))) if whole else []
        if not shared:
            continue
        ladder_ends, ends_of_arm = (_endpoints(good, some, shared, tables) for some in (dense, mine))
        own = _own(points, ladder_ends, _endpoints(good, whole, shared, tables), uncertainty)
        several = Leverage([], None, len(shared))
        if len(mine) > 1:
            several = leverage(ladder_ends, ends_of_arm, uncertainty=uncertainty)
        size = None
        if _equal_data([*ladder, whole[0]]):
            size = effective_size(_mean_point(good[whole[0].label], shared)[1], sizes)
        arms[label] = {
            "own": own,
            "covered": sorted({*own["covered"], *several.covered}, reverse=True),
            "at": [{"loss": loss, **interval.as_dict()} for loss, interval in several.at],
            "mean": None if several.mean is None else several.mean.as_dict(),
            "effective_size": None if size is None else {"params": size.cost, "bound": size.bound},
            "hypervolume": hypervolume([_mean_point(good[row.label], shared) for row in mine], corner),
        }
    listed = [{"label": name, "flops": cost, "loss": loss} for name, (cost, loss) in points.items()]
    pareto = set(best_so_far(list(ends.values())))
    return {
        "points": listed, "front": best_so_far(list(points.values())), "arms": arms, "reference_point": corner,
        "pareto": [label for label, point in ends.items() if point in pareto],
    }  # fmt: skip


def _equal_data(rows: Sequence[Row]) -> bool:
    """Whether all of these see as many examples."""
    counted = all(row.budget.steps is not None or row.budget.epochs is not None for row in rows)
    return counted and all(row.budget == rows[0].budget for row in rows)


def _own(
    points: Mapping[str, tuple[float, float]], dense: Endpoints, arm: Endpoints, uncertainty: Collection[str]
) -> dict[str, Any]:
    """Return the leverage at the arm's own loss, or the ratio that it exceeds or falls short of if the ladder does not reach it."""
    cost, loss = float(np.exp(np.log(arm.cost).mean())), float(arm.loss.mean())
    reach = cost_to(loss, list(points.values()))
    estimate = leverage(dense, arm, uncertainty=uncertainty) if reach.bound == "=" else Leverage([], None, arm.loss.shape[1])
    interval = estimate.at[0][1] if estimate.at else Interval(reach.cost / cost, math.nan, math.nan, arm.loss.shape[1])
    return {"loss": loss, "bound": reach.bound, **interval.as_dict(), "covered": list(estimate.covered)}


def to_target(records: Sequence[Mapping[str, Any]], reference: str, label: str) -> dict[str, Any] | None:
    """Return the ratio of an arm's training FLOPs and seconds to the reference's, up to the loss that the reference ends with.

    The ratios come from the curves of validation loss, best so far, so they support no claim: their points lie inside a
    schedule. The target is the highest of the reference's final validation losses. The arm's cost is known only on seeds on which
    it reached the target. A mean over these seeds would favour the arm, so ratios are given only if it reached it on every seed.

    Args:
        records: One record for each arm and seed.
        reference: Label of the reference.
        label: Label of the arm.

    Returns:
        `loss`, the target; `seeds`, and `reached`, on how many of them the arm reached it; `flops` and `seconds`, intervals of the
        ratios, None unless it reached it on every seed. None if an arm has no curve, as references outside the loop.
    """
    mine, base = _by_seed(records, label), _by_seed(records, reference)
    both = sorted(set(mine) & set(base))
    shared = [seed for seed in both if base[seed].get("validation") and curve_points(mine[seed]) and curve_points(base[seed])]
    if not shared:
        return None
    target = max(float(base[seed]["validation"]["loss"]) for seed in shared)
    ratios: dict[str, list[float]] = {"flops": [], "seconds": []}
    for seed in shared:
        for key, values in ratios.items():
            sides = [curve_points(side[seed], key) for side in (mine, base)]
            if all(sides):
                ours, theirs = (cost_to(target, side) for side in sides)
                if ours.bound != ">" and theirs.bound != ">":
                    values.append(math.log(ours.cost / theirs.cost))
    intervals = {key: _exp(mean_interval(values)) if len(values) == len(shared) else None for key, values in ratios.items()}
    return {"loss": target, "seeds": len(shared), "reached": len(ratios["flops"]), **intervals}


def _exp(interval: Interval) -> dict[str, Any]:
    """An interval of logs as one of ratios."""
    return Interval(math.exp(interval.mean), math.exp(interval.low), math.exp(interval.high), interval.n).as_dict()


def _by_seed(records: Sequence[Mapping[str, Any]], label: str) -> dict[int, Mapping[str, Any]]:
    return {r["seed"]: r for r in records if r["arm"] == label and r["status"] == "ok"}


def _mean_point(runs: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]) -> tuple[float, float]:
    cost = np.exp(np.mean([math.log(spent(runs[seed])) for seed in seeds]))
    return float(cost), float(np.mean([runs[seed]["test"]["loss"] for seed in seeds]))


def _endpoints(
    good: Mapping[str, Mapping[int, Mapping[str, Any]]],
    rows: Sequence[Row],
    seeds: Sequence[int],
    tables: MetricTables | None,
) -> Endpoints:
    """Return the endpoints of some rows on some seeds."""
    cost = np.array([[spent(good[row.label][seed]) for seed in seeds] for row in rows])
    loss = np.array([[float(good[row.label][seed]["test"]["loss"]) for seed in seeds] for row in rows])
    without = [None if tables is None else tables.losses_without_groups(row.label, seeds) for row in rows]
    recorded = [losses for losses in without if losses is not None]
    is_complete = len(recorded) == len(rows) > 0 and len({len(losses) for losses in recorded}) == 1
    return Endpoints(cost, loss, np.stack(recorded, 1) if is_complete else None)
