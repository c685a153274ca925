"""Recompute every interval of a comparison from its files, with numpy, scipy and pandas alone, and compare with summary.json.

    python docs/statistics/recompute.py results/digits

The script imports nothing of routelab. It reads units.parquet, results.csv and, for leverage, endpoints.csv. It takes from
summary.json only what was to be computed: the reference, the level, the sources of uncertainty, the pairs and the numbers of seeds
at which the comparison was analysed. It prints the largest relative deviation of each kind of interval, and exits with 1 if one is
above 1e-6. docs/statistics.md explains the formulas. It leaves out the BCa bootstrap interval over seeds, and the ratios up to the
reference's loss, which are read off the curves.

Axes: S seeds, U test units.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

Bounds = tuple[float, float, float]
"""Low, mean, high."""

TOLERANCE = 1e-6
GROUPS = 20
METRICS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "log_loss": lambda sums: np.log(sums["loss"] / sums["count"]),
    "loss": lambda sums: sums["loss"] / sums["count"],
    "accuracy": lambda sums: sums["correct"] / sums["count"],
    "bits_per_byte": lambda sums: sums["loss"] / sums["bytes"] / math.log(2),
    "r2": lambda sums: (
        1
        - _total(sums, "squared_error")
        / (_total(sums, "target_square") - _total(sums, "target") ** 2 / (sums["count"] * _columns(sums)))
    ),
}


def _columns(sums: Any) -> int:
    """Return the number of columns of the targets."""
    return sum(name.startswith("squared_error_") for name in dict(sums))


def _total(sums: Any, name: str) -> Any:
    """Return the sum over the columns of the targets."""
    return sum(sums[f"{name}_{column}"] for column in range(_columns(sums)))


class Files:
    """Files of a comparison."""

    def __init__(self, folder: Path) -> None:
        self.summary = json.loads((folder / "summary.json").read_text())
        self.units = pd.read_parquet(folder / "units.parquet").astype({"arm": str})
        self.results = pd.read_csv(folder / "results.csv")
        self.endpoints = pd.read_csv(folder / "endpoints.csv")
        self.level = self.summary["level"]
        self.uncertainty = self.summary["uncertainty"]
        self.first_look = self.summary["first_look"]

    def seeds(self, arm: str) -> list[int]:
        """Return the seeds of an arm."""
        return sorted(self.units[self.units.arm == arm].seed.unique().tolist())

    def table(self, arm: str, seeds: list[int], metric: str, domain: str | None = None) -> np.ndarray:
        """Return a metric by seed and unit, (S, U): its value plus the delete-one influence of each unit."""
        return np.array(
            [_row(self.units[(self.units.arm == arm) & (self.units.seed == seed)], metric, domain) for seed in seeds]
        )

    def difference(self, arm: str, against: str, metric: str, domain: str | None = None) -> np.ndarray:
        """Return the difference of a metric between two arms by seed and unit, (S, U)."""
        seeds = sorted(set(self.seeds(arm)) & set(self.seeds(against)))
        return self.table(arm, seeds, metric, domain) - self.table(against, seeds, metric, domain)


def _row(run: pd.DataFrame, metric: str, domain: str | None) -> np.ndarray:
    run = run if domain is None else run[run.domain == domain]
    sums = run.drop(columns=["arm", "seed", "domain"]).groupby("unit").sum()
    compute, total = METRICS[metric], sums.sum()
    if len(sums) < 2:
        return np.array([compute(total)])
    without = compute({name: total[name] - sums[name].to_numpy() for name in sums})
    return compute(total) + (len(sums) - 1) * (without.mean() - without)


def two_way(table_SU: np.ndarray, level: float, uncertainty: list[str]) -> Bounds:
    """Return the t-interval of the mean of a table over seeds, units, or both."""
    n, m = table_SU.shape
    varies = np.ptp(table_SU, axis=0).any()
    if (m < 2 and (not varies or "examples" in uncertainty)) or (n < 2 and "seeds" in uncertainty):
        return math.nan, float(table_SU.mean()), math.nan
    cells = pd.DataFrame(table_SU).melt(ignore_index=False, var_name="unit", value_name="d").rename_axis("seed").reset_index()
    mean = float(cells.d.mean())
    by_seed, by_unit = cells.groupby("seed").d.mean(), cells.groupby("unit").d.mean()
    if not varies or uncertainty == ["examples"]:
        return _t_interval(mean, by_unit.sem(), m - 1, level)
    if uncertainty == ["seeds"]:
        return _t_interval(mean, by_seed.sem(), n - 1, level)
    residual = cells.d - cells.seed.map(by_seed) - cells.unit.map(by_unit) + mean
    seed, unit, error = by_seed.var() / n, by_unit.var() / m, (residual**2).sum() / ((n - 1) * (m - 1)) / (n * m)
    variance = seed + unit - error
    if variance > max(seed, unit):
        df = variance**2 / (seed**2 / (n - 1) + unit**2 / (m - 1) + error**2 / ((n - 1) * (m - 1)))
    else:
        variance, df = max(seed, unit), n - 1 if seed > unit else m - 1
    return _t_interval(mean, math.sqrt(variance), df, level)


def _t_interval(mean: float, error: float, df: float, level: float) -> Bounds:
    half = stats.t.ppf(1 - level / 2, df) * error
    return mean - half, mean, mean + half


def log_bayes_factor(values: np.ndarray, theta: float, skewed: bool) -> float:
    """Return the log of the Bayes factor against the mean theta, from the t statistic or from Hall's."""
    n = len(values)
    square = n * (_hall(values, theta) if skewed else (values.mean() - theta) / values.std(ddof=1)) ** 2
    return -0.5 * math.log1p(n) + n / 2 * (math.log1p(square / (n - 1)) - math.log1p(square / (n - 1) / (n + 1)))


def anytime(values: np.ndarray, level: float) -> Bounds:
    """Return the interval of the means that no analysis rejects, by the t statistic or by Hall's; infinite with few seeds."""
    mean, deviation, bar = values.mean(), values.std(ddof=1), math.log(1 / level)
    far = 1e6 * deviation
    if log_bayes_factor(values, mean - far, skewed=False) < bar:
        return -math.inf, mean, math.inf
    bounds = []
    for side in (-1, 1):
        reach = [_crossing(values, side, bar, skewed) for skewed in (False, True)]
        bounds.append(mean + side * max(reach))
    return bounds[0], mean, bounds[1]


def _crossing(values: np.ndarray, side: int, bar: float, skewed: bool) -> float:
    """Return how far from the mean the Bayes factor reaches the bar."""
    mean, deviation = values.mean(), values.std(ddof=1)
    # Hall's statistic is 0 near the mean, and moves away from it monotonically.
    start = optimize.brentq(lambda x: _hall(values, mean + side * x), -50 * deviation, 50 * deviation) if skewed else 0.0
    return optimize.brentq(
        lambda x: log_bayes_factor(values, mean + side * x, skewed) - bar, start, 1e6 * deviation, xtol=1e-15
    )


def _hall(values: np.ndarray, theta: float) -> float:
    n, g, z = len(values), stats.skew(values), (values.mean() - theta) / values.std(ddof=1)
    return z + g * z**2 / 3 + g**2 * z**3 / 27 + g / (6 * n)


def sequential(table_SU: np.ndarray, level: float, uncertainty: list[str], first_look: int) -> Bounds:
    """Return the interval that holds at all analyses."""
    n, m = table_SU.shape
    if not np.ptp(table_SU, axis=0).any() or uncertainty == ["examples"]:
        return two_way(table_SU, level, ["examples"])
    if uncertainty == ["seeds"]:
        return anytime(table_SU.mean(1), level)
    low, mean, high = anytime(table_SU.mean(1), level / 2)
    errors = [stats.sem(table_SU[:k].mean(0)) for k in range(min(first_look, n), n + 1)]
    half = stats.t.ppf(1 - level / 4, m - 1) * max(errors)
    return low - half, mean, high + half


def intervals(files: Files) -> Iterator[tuple[str, Bounds, dict[str, Any]]]:
    """Yield the kind of each interval, its recomputed bounds, and the stored ones."""
    summary = files.summary
    arms, reference, metric = summary["arms"], summary["reference"], summary["metric"]

    def of(table_SU: np.ndarray, family: int) -> Bounds:
        if summary["sequential"]:
            return sequential(table_SU, files.level / family, files.uncertainty, files.first_look)
        return two_way(table_SU, files.level, files.uncertainty)

    judged = [label for label, arm in arms.items() if arm["difference"]]
    family = len(summary["family"])
    for label, arm in arms.items():
        for kind, name in (("loss", "loss"), ("metric", metric)):
            if arm[kind] and arm["n"] > 1:
                yield (
                    f"arm's {kind}",
                    two_way(files.table(label, files.seeds(label), name), files.level, files.uncertainty),
                    arm[kind],
                )
        for domain, result in arm["by_domain"].items():
            if arm["n"] > 1:
                table_SU = files.table(label, files.seeds(label), "loss", domain)
                yield "domain's loss", two_way(table_SU, files.level, files.uncertainty), result["loss"]
            if result["difference"]:
                yield "domain's difference", of(files.difference(label, reference, "log_loss", domain), 1), result["difference"]
        if label in judged:
            table_SU = files.difference(label, reference, "log_loss")
            yield "difference", of(table_SU, family), arm["difference"]
            yield "metric's difference", of(files.difference(label, reference, metric), 1), arm["metric_difference"]
            if arm["over_seeds"]:
                yield "difference over seeds", two_way(table_SU, files.level, ["seeds"]), arm["over_seeds"]
            if arm["time_ratio"]:
                yield "time", _time(files, label, reference), arm["time_ratio"]
        if (arm.get("leverage") or {}).get("own") and arm["leverage"]["own"]["bound"] == "=":
            yield from _leverage(files, label)
    for pair in summary["pairs"]:
        table_SU = files.difference(pair["arm"], pair["against"], "log_loss")
        yield "pair's difference", of(table_SU, len(summary["pairs"])), pair["difference"]
        yield "pair's metric", of(files.difference(pair["arm"], pair["against"], metric), 1), pair["metric_difference"]
        if pair["over_seeds"]:
            yield "pair over seeds", two_way(table_SU, files.level, ["seeds"]), pair["over_seeds"]
        if pair["time_ratio"]:
            yield "pair's time", _time(files, pair["arm"], pair["against"]), pair["time_ratio"]


def _time(files: Files, arm: str, reference: str) -> Bounds:
    seconds = files.results[files.results.status == "ok"].pivot_table(index="seed", columns="arm", values="seconds")
    ratio = np.log(seconds[arm] / seconds[reference]).dropna()
    low, mean, high = _t_interval(ratio.mean(), stats.sem(ratio), len(ratio) - 1, 0.05)
    return math.exp(low), math.exp(mean), math.exp(high)


def _leverage(files: Files, arm: str) -> Iterator[tuple[str, Bounds, dict[str, Any]]]:
    """Yield the leverage of an arm at its own loss, at three losses and over their range, by jackknives over seeds and units."""
    rows, reference = files.summary["rows"], files.summary["reference"]
    labels = {side: [name for name, row in rows.items() if row["arm"] == side] for side in (reference, arm)}
    main = [name for name in labels[arm] if rows[name]["size"] == rows[name]["budget"] == 1.0]
    used = [*labels[reference], *labels[arm]]
    seeds = sorted(set.intersection(*(set(files.seeds(name)) for name in used)))
    cost = {name: _costs(files, rows[name], seeds) for name in used}
    sums = {name: [_group_sums(files, name, seed) for seed in seeds] for name in used}
    groups = len(sums[used[0]][0])

    def points(names: list[str], chosen: list[int], left_out: int | None) -> list[tuple[float, float]]:
        result = []
        for name in names:
            losses = []
            for s in chosen:
                groups_left = sums[name][s] if left_out is None else sums[name][s].drop(index=left_out)
                losses.append(groups_left["loss"].sum() / groups_left["count"].sum())
            result.append((float(np.log(cost[name][chosen]).mean()), float(np.mean(losses))))
        return result

    everything = list(range(len(seeds)))
    stored = files.summary["arms"][arm]["leverage"]
    targets = [at["loss"] for at in stored["at"]]
    fronts = [_envelope(points(labels[side], everything, None)) for side in (reference, arm)]
    low, high = max(front[-1][1] for front in fronts), min(front[0][1] for front in fronts)
    grid = [low + (high - low) * (k + 0.5) / 33 for k in range(33)]

    def statistic(chosen: list[int], left_out: int | None) -> np.ndarray:
        dense_front, arm_front = (_envelope(points(labels[side], chosen, left_out)) for side in (reference, arm))
        log_cost, loss_of_main = points(main, chosen, left_out)[0]
        logs = [_log_cost(dense_front, loss_of_main) - log_cost]
        logs += [_log_cost(dense_front, loss) - _log_cost(arm_front, loss) for loss in targets]
        if targets:
            logs.append(float(np.nanmean([_log_cost(dense_front, loss) - _log_cost(arm_front, loss) for loss in grid])))
        return np.array(logs)

    estimate, replicates = statistic(everything, None), []
    if "seeds" in files.uncertainty:
        replicates.append(np.array([statistic([s for s in everything if s != seed], None) for seed in everything]))
    if "examples" in files.uncertainty:
        replicates.append(np.array([statistic(everything, group) for group in range(groups)]))
    variances = [(len(values) - 1) / len(values) * ((values - values.mean(0)) ** 2).sum(0) for values in replicates]
    total = sum(variances)
    df = total**2 / sum(v**2 / (len(values) - 1) for v, values in zip(variances, replicates, strict=True))
    half = stats.t.ppf(0.975, df) * np.sqrt(total)
    expected = [stored["own"], *stored["at"], *([stored["mean"]] if targets else [])]
    for value, width, interval in zip(estimate, half, expected, strict=True):
        yield "leverage", (math.exp(value - width), math.exp(value), math.exp(value + width)), interval


def _costs(files: Files, row: dict[str, Any], seeds: list[int]) -> np.ndarray:
    endpoints = files.endpoints
    chosen = endpoints[(endpoints.arm == row["arm"]) & (endpoints["size"] == row["size"]) & (endpoints.budget == row["budget"])]
    earlier = chosen.set_index("seed").get("initial_flops", pd.Series(0.0, index=chosen.seed)).fillna(0.0)
    return (chosen.set_index("seed").flops_model + earlier).loc[seeds].to_numpy()


def _group_sums(files: Files, label: str, seed: int) -> pd.DataFrame:
    run = files.units[(files.units.arm == label) & (files.units.seed == seed)]
    sums = run.groupby("unit")[["loss", "count"]].sum()
    return sums.groupby(np.arange(len(sums)) % min(GROUPS, len(sums))).sum()


def _envelope(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    best, envelope = math.inf, []
    for cost, loss in sorted(points):
        if loss < best:
            best = loss
            envelope.append((cost, loss))
    return envelope


def _log_cost(envelope: list[tuple[float, float]], loss: float) -> float:
    costs, losses = np.array(envelope).T
    return float(np.interp(-loss, -losses, costs)) if losses[-1] <= loss <= losses[0] else math.nan


def deviations(folder: Path) -> dict[str, float]:
    """Return the largest relative deviation of each kind of interval from summary.json."""
    worst: dict[str, float] = {}
    for kind, bounds, stored in intervals(Files(folder)):
        for recomputed, name in zip(bounds, ("low", "mean", "high"), strict=True):
            value = math.nan if stored[name] is None else stored[name]
            if math.isfinite(recomputed) or math.isfinite(value):
                scale = max(abs(bounds[1]), abs(bounds[2] - bounds[0]) if math.isfinite(bounds[2] - bounds[0]) else 0.0, 1e-12)
                worst[kind] = max(worst.get(kind, 0.0), abs(recomputed - value) / scale)
    return worst


def main(folder: Path) -> int:
    """Print the deviations; return 1 if one is too large."""
    worst = deviations(folder)
    for kind, deviation in worst.items():
        print(f"{kind:<24} {deviation:.1e}")
    return int(not worst or not max(worst.values()) <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
