"""From records to numbers: what a comparison's summary says of every arm."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from routelab.comparison.budget_accounting import readings_of, readings_sentence
from routelab.comparison.frontier import to_target
from routelab.comparison.limits_text import caveat_of, explain_uncertainty
from routelab.comparison.metric_tables import MetricTables, contrasts_against
from routelab.comparison.per_domain import domains_of
from routelab.comparison.statistics.hypothesis_tests import describe_contrast, judge
from routelab.comparison.summary_text import sentence_of
from routelab.comparison.verdict import notes_of, verdict_of
from routelab.config.schema import StatisticsOptions
from routelab.core.intervals import mean_interval
from routelab.report.arm_labels import marks

_RATIOS = {"flops_per_example": "flops_ratio", "active_params": "active_ratio", "total_params": "total_ratio"}
_MEANS = (
    "flops_per_example",
    "flops_per_example_measured",
    "active_params",
    "total_params",
    "flops_model",
    "flops_executed",
    "steps",
    "seconds",
    "drop_rate",
    "load_cv",
    "initial_flops",
)


def summarise(
    name: str,
    records: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    reference: str | None,
    *,
    options: StatisticsOptions | None = None,
    sequential: bool = False,
    first_look: int | None = None,
    tables: MetricTables | None = None,
    earlier_arms: Collection[str] = (),
    frontier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the summary of a comparison (summary.json). Differences are in log loss, paired by seed and test unit.

    Args:
        name: Name of the comparison.
        records: One record for each arm and seed.
        labels: Labels of the arms that are judged.
        reference: Label of the arm that the others are judged against, None if there is none.
        options: Levels, margin and sources of uncertainty.
        sequential: Whether seeds were added while verdicts were open, so that intervals must hold at all interim analyses.
        first_look: Smallest number of seeds at which an analysis was made; None = `options.min_seeds`.
        tables: Tables by test unit; None = without test units.
        earlier_arms: Labels of arms that were judged in earlier analyses of this comparison.
        frontier: Result of `routelab.comparison.frontier.frontier_of`.
    """
    options = options or StatisticsOptions()
    tables = tables or MetricTables(records)
    metric = next((record["metric"] for record in records if record.get("metric")), "accuracy")
    seeds = sorted({record["seed"] for record in records})
    arms = {label: entry_of(records, label, metric, reference, tables, options) for label in labels}
    for entry in arms.values():
        for key, ratio in _RATIOS.items():
            ours, theirs = entry[key], arms[reference][key] if reference else None
            entry[ratio] = ours / theirs if ours and theirs else None
    contrasts = contrasts_against(reference, labels, tables) if reference else {}
    family = family_of(labels, reference, earlier_arms)
    judge(arms, contrasts, options, sequential, first_look, len(family))
    readings = readings_of(arms, reference)

    describe_one_sample = partial(describe_contrast, options=options, sequential=False)
    describe_difference = partial(describe_contrast, options=options, sequential=sequential, first_look=first_look)
    for label, entry in arms.items():
        entry["training_ratio"] = readings.get(label)
        entry["by_domain"] = domains_of(tables, label, reference, describe_one_sample, describe_difference)
        entry["leverage"] = ((frontier or {}).get("arms") or {}).get(label)
        entry["metric_difference"] = None
        if label in contrasts and reference:
            entry["metric_difference"] = describe_difference(tables.contrast(label, reference, metric))
            entry["to_target"] = to_target(records, reference, label)
        entry["notes"] = notes_of(entry, tables.unit)
        entry["verdict"] = verdict_of(label, entry, reference, tables.unit)
    data = records[0]["data"] if records else name
    sentence = sentence_of(arms, reference, data, options, sequential, tables.unit)
    return {
        "name": name, "data": data, "metric": metric, "reference": reference, "seeds": seeds, "arms": arms,
        "sentence": sentence + readings_sentence(arms, reference, readings),
        "caveat": caveat_of(arms, len(seeds), sequential, options.uncertainty, tables.unit, options.alpha),
        "split_note": explain_uncertainty(arms, reference, tables.unit),
        "family": family, "unit": tables.unit, "uncertainty": list(options.uncertainty),
        "margin": options.margin, "level": options.alpha, "sequential": sequential,
        "first_look": (first_look or options.min_seeds) if sequential else None, "frontier": frontier,
    }  # fmt: skip


def family_of(labels: Sequence[str], reference: str | None, earlier_arms: Collection[str] = ()) -> list[str]:
    """Return the arms that the levels are divided among: those of the comparison and of its earlier analyses.

    Args:
        labels: Labels of the arms.
        reference: Label of the reference.
        earlier_arms: Labels of the arms of earlier analyses.
    """
    return sorted({*labels, *earlier_arms} - {reference})


def _means(groups: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every figure over the records that have it."""
    names = dict.fromkeys(name for group in groups for name in group)
    values = {name: [group[name] for group in groups if group.get(name) is not None] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def entry_of(
    records: Sequence[Mapping[str, Any]],
    label: str,
    metric: str,
    reference: str | None,
    tables: MetricTables,
    options: StatisticsOptions,
) -> dict[str, Any]:
    """Return the results of one arm by itself, and the ratio of its training time to the reference's.

    Args:
        records: One record for each arm and seed.
        label: Label of the arm.
        metric: Metric of the data.
        reference: Label of the reference, None if there is none.
        tables: Tables of the comparison's runs.
        options: Level and sources of uncertainty.
    """
    mine = {r["seed"]: r for r in records if r["arm"] == label and r["status"] == "ok"}
    entry: dict[str, Any] = {"n": len(mine), "failed": sum(r["arm"] == label for r in records) - len(mine)}
    entry["diverged"] = tables.count_diverged(label)
    for key, name in (("loss", "loss"), ("metric", metric)):
        entry[key] = describe_contrast(tables.one_sample(label, name), options, sequential=False)
    for key in _MEANS:
        values = [record[key] for record in mine.values() if record.get(key) is not None]
        entry[key] = sum(values) / len(values) if values else None
    for group in ("calibration", "diversity", "telemetry"):
        entry[group] = _means([record.get(group) or {} for record in mine.values()])
    entry["causal"] = all(record.get("causal", True) for record in mine.values()) if mine else None
    entry["leaks"] = next((record["leaks"] for record in mine.values() if record.get("leaks")), None)
    entry["marks"] = sorted({mark for record in mine.values() for mark in marks(record)}, reverse=True)
    entry["memory"] = _means([record.get("memory") or {} for record in mine.values()])
    rates = [rate for record in mine.values() if (rate := _examples_per_second(record))]
    entry["examples_per_second"] = sum(rates) / len(rates) if rates else None
    entry["time_ratio"] = None
    base = {r["seed"]: r for r in records if r["arm"] == reference and r["status"] == "ok"}
    timed = [
        seed for seed in mine if label != reference and seed in base and mine[seed].get("seconds") and base[seed]["seconds"]
    ]
    if timed:
        logs = mean_interval([math.log(mine[seed]["seconds"] / base[seed]["seconds"]) for seed in timed])
        entry["time_ratio"] = {**logs.as_dict(), **{part: math.exp(getattr(logs, part)) for part in ("mean", "low", "high")}}
    return entry


def _examples_per_second(record: Mapping[str, Any]) -> float | None:
    """Examples that a training run drew each second, of those that draw batches."""
    options, steps = (record.get("config") or {}).get("trainer"), record.get("steps")
    if not options or not steps or not record.get("seconds"):
        return None
    return float(steps * options["batch_size"] * options["accumulate"] / record["seconds"])
