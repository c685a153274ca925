"""Hypothesis tests of the paired differences of arms: once, or after every seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from routelab.comparison.statistics.exact_tests import equivalence_p, holm, paired_p, sign_flip_p
from routelab.comparison.statistics.power import detectable_difference, seeds_needed
from routelab.comparison.statistics.sequential import look, seeds_to_settle
from routelab.config.schema import StatisticsOptions
from routelab.core.intervals import bca_interval, mean_interval


def differences(labels: Sequence[str], reference: str, records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Log test loss of each arm minus the reference's, by seed, for arms that share a seed with it."""
    logs: dict[str, dict[int, float]] = {label: {} for label in (*labels, reference)}
    for record in records:
        if record["status"] == "ok" and record["arm"] in logs:
            logs[record["arm"]][record["seed"]] = math.log(max(record["test"]["loss"], 1e-12))
    base = logs[reference]
    found = {
        label: [logs[label][seed] - base[seed] for seed in sorted(set(logs[label]) & set(base))]
        for label in labels
        if label != reference
    }
    return {label: values for label, values in found.items() if values}


def judge(
    arms: Mapping[str, dict[str, Any]], compared: Mapping[str, Sequence[float]], options: StatisticsOptions, sequential: bool
) -> None:
    """Fill in every arm's `difference` (an interval) and the `state` of its verdict: better, worse, equivalent, open, or None
    with one seed.

    compared: the differences of the arms that are judged, which are one family of claims. sequential: seeds were added where
    the verdict was open, so the interval is one that holds at every look, and there are no p-values, which would not.
    """
    for entry in arms.values():
        entry |= {"difference": None, "p_sign_flip": None, "detectable": None, "state": None, "bca": None}
    for label, values in compared.items():
        arms[label]["difference"] = mean_interval(values, 1 - options.alpha).as_dict()
    (_look if sequential else _test)(arms, compared, options)
    level = options.alpha / max(1, len(compared))
    for label, values in compared.items():
        if arms[label]["state"] == "open":
            needed = seeds_to_settle(values, level) if sequential else seeds_needed(values, alpha=level)
            arms[label]["seeds_needed"] = max(needed, len(values) + 1) if needed else None


def _test(arms: Mapping[str, dict[str, Any]], compared: Mapping[str, Sequence[float]], options: StatisticsOptions) -> None:
    for label, values in compared.items():
        bca = bca_interval(values, 1 - options.alpha)
        arms[label] |= {
            "p_t": paired_p(values),
            "p_sign_flip": sign_flip_p(values),
            "p_equivalent": equivalence_p(values, options.margin),
            "detectable": detectable_difference(values),
            "bca": bca.as_dict() if bca else None,
        }
    for source, target in (("p_t", "p_holm"), ("p_equivalent", "p_equivalent")):
        for label, adjusted in zip(compared, holm([arms[label][source] for label in compared]), strict=True):
            arms[label][target] = adjusted
    for label, values in compared.items():
        entry = arms[label]
        if len(values) < 2:
            continue
        if entry["p_holm"] < options.alpha:
            entry["state"] = "better" if entry["difference"]["mean"] < 0 else "worse"
        else:
            entry["state"] = "equivalent" if entry["p_equivalent"] < options.alpha else "open"


def _look(arms: Mapping[str, dict[str, Any]], compared: Mapping[str, Sequence[float]], options: StatisticsOptions) -> None:
    for label, found in look(compared, options.margin, options.alpha).items():
        if len(compared[label]) > 1:
            arms[label] |= {"difference": found.interval.as_dict(), "sequential": found.level, "state": found.state}
