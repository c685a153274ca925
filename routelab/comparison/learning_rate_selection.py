"""Learning rates chosen per arm, on the validation split only, before anything is compared on test."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def choose_rates(records: Sequence[Mapping[str, Any]], seeds: Collection[int] | None = None) -> dict[str, dict[str, Any]]:
    """Of every arm that was trained with several learning rates: which one was best, and how each did.

    Best is the lowest validation loss at the end of training, averaged over the seeds; a rate that failed on some seeds
    ranks behind every rate that failed on fewer. Per label: `rate`, `validation` (rate -> mean loss, None where it failed on
    every seed), `edge`, whether the best is the smallest or largest tried, so that a better one may lie outside, and `flops`,
    the model FLOPs of training that all the rates took together. seeds: those on which rates are chosen, None = all.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(record["arm"] for record in records):
        tried: dict[float, list[Mapping[str, Any]]] = {}
        for record in records:
            if record["arm"] == label and (seeds is None or record["seed"] in seeds):
                tried.setdefault(rate_of(record), []).append(record)
        if len(tried) < 2:
            continue
        means = {rate: _mean(group) for rate, group in tried.items()}
        best = min(tried, key=lambda rate: (_failures(tried[rate]), means[rate] if means[rate] is not None else math.inf))
        edge = best in (min(tried), max(tried))
        chosen[label] = {
            "rate": best,
            "validation": {str(rate): mean for rate, mean in means.items()},
            "edge": edge,
            "flops": sum(record.get("flops_model") or 0.0 for record in records if record["arm"] == label),
        }
    return chosen


def best_rates(records: Sequence[Mapping[str, Any]], seeds: Collection[int] | None = None) -> list[Any]:
    """Return the records without those of learning rates that were not chosen.

    Args:
        records: Records of all runs.
        seeds: Seeds on which rates are chosen, None = all.
    """
    tuned = choose_rates(records, seeds)
    return [record for record in records if record["arm"] not in tuned or rate_of(record) == tuned[record["arm"]]["rate"]]


def rate_of(record: Mapping[str, Any]) -> float:
    """The learning rate that a record was trained with."""
    return float(record["config"]["optimizer"]["lr"])


def _failures(group: Sequence[Mapping[str, Any]]) -> int:
    return sum(record["status"] != "ok" for record in group)


def _mean(group: Sequence[Mapping[str, Any]]) -> float | None:
    losses = [record["validation"]["loss"] for record in group if record["status"] == "ok"]
    return sum(losses) / len(losses) if losses else None
