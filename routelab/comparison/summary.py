"""From records to tables and numbers: means, paired intervals, and how each arm is judged."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from routelab.comparison.domains import domains_of
from routelab.comparison.frontier import to_target
from routelab.comparison.readings import readings_of, readings_sentence
from routelab.comparison.rows import Row
from routelab.comparison.sequential import look
from routelab.comparison.statistics import (
    bca_interval,
    detectable_difference,
    equivalence_p,
    holm,
    mean_interval,
    seeds_needed,
    sign_flip_p,
)
from routelab.comparison.verdict import caveat_of, sentence_of, verdict_of
from routelab.training.record import write_text
from routelab.training.settings import Verdict

_RATIOS = {"flops_per_example": "flops_ratio", "active_params": "active_ratio", "total_params": "total_ratio"}
_TAIL = (
    "flops_model", "flops_executed", "flops_per_example", "active_params", "total_params", "seconds", "drop_rate", "load_cv",
    "causal", "status",
)  # fmt: skip
_MEANS = (
    "flops_per_example",
    "active_params",
    "total_params",
    "flops_model",
    "flops_executed",
    "seconds",
    "drop_rate",
    "load_cv",
    "initial_flops",
)


def write_results(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """results.csv: one row per arm and seed, columns as design.md §4 names them; further ones, leaks and
    initial_flops, where an arm leaks or builds on an earlier run."""
    metric = next((record["metric"] for record in records if record.get("metric")), "accuracy")
    column = metric if metric == "bits_per_byte" else f"test_{metric}"
    tail = (*_TAIL, *(name for name in ("leaks", "initial_flops") if any(record.get(name) for record in records)))
    lines = [["arm", "seed", "data", "test_loss", column, *tail]]
    for record in records:
        test = record.get("test") or {}
        row = [record["arm"], record["seed"], record["data"], test.get("loss"), test.get(metric)]
        values = [record.get(name) for name in tail]
        lines.append([*row, *(str(value).lower() if isinstance(value, bool) else value for value in values)])
    write_csv(path, lines)


def write_endpoints(path: Path, records: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> None:
    """endpoints.csv: where every run ended, at all sizes and shares of the budget."""
    by_label = {row.label: row for row in rows}
    lines: list[list[Any]] = [
        ["arm", "size", "budget", "seed", "flops_model", "test_loss", "validation_loss", "total_params", "seconds"]
    ]
    for record in records:
        row = by_label[record["arm"]]
        losses = [(record.get(split) or {}).get("loss") for split in ("test", "validation")]
        costs = record.get("flops_model"), *losses, record.get("total_params"), record.get("seconds")
        lines.append([row.arm, row.size, row.share, record["seed"], *costs])
    write_csv(path, lines)


def write_domains(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """domains.csv: a row for each arm, seed and domain of the data; no file where there are none."""
    metric = next((record["metric"] for record in records if record.get("metric")), "accuracy")
    column = metric if metric == "bits_per_byte" else f"test_{metric}"
    lines = [
        [record["arm"], record["seed"], domain, found["loss"], found[metric]]
        for record in records
        for domain, found in (record.get("by_domain") or {}).items()
    ]
    if lines:
        write_csv(path, [["arm", "seed", "domain", "test_loss", column], *lines])


def write_curves(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """curves.csv: every point of every run's curve."""
    columns = ["step", "flops", "seconds", "train/loss", "val/loss"]
    lines = [["arm", "seed", *columns]]
    for record in records:
        lines += [[record["arm"], record["seed"], *(point.get(key) for key in columns)] for point in record.get("curve") or ()]
    write_csv(path, lines)


def write_csv(path: Path, lines: Sequence[Sequence[Any]]) -> None:
    """Rows as CSV, whole or not at all; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(["" if value is None else value for value in line] for line in lines)
    write_text(path, text.getvalue())


def summarise(
    name: str,
    records: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    reference: str | None,
    *,
    verdict: Verdict | None = None,
    sequential: bool = False,
    frontier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary of a comparison (summary.json). Differences are in log loss, paired by seed, against the reference.

    labels: the arms that are judged. sequential: seeds were added where the verdict was open, so that intervals and verdicts
    are those of `routelab.comparison.sequential`. frontier: what `routelab.comparison.frontier.frontier_of` found.
    """
    verdict = verdict or Verdict()
    metric = next((record["metric"] for record in records if record.get("metric")), "accuracy")
    seeds = sorted({record["seed"] for record in records})
    arms = {label: entry_of(records, label, metric, reference) for label in labels}
    for entry in arms.values():
        for key, ratio in _RATIOS.items():
            ours, theirs = entry[key], arms[reference][key] if reference else None
            entry[ratio] = ours / theirs if ours and theirs else None
    compared = differences(labels, reference, records) if reference else {}
    judge(arms, compared, verdict, sequential)
    readings = readings_of(arms, reference)
    for label, entry in arms.items():
        entry["training_ratio"] = readings.get(label)
        entry["by_domain"] = domains_of(records, label, reference, verdict.level)
        entry["leverage"] = ((frontier or {}).get("arms") or {}).get(label)
        if label in compared and reference:
            entry["to_target"] = to_target(records, reference, label)
        entry["verdict"] = verdict_of(label, entry, reference)
    data = records[0]["data"] if records else name
    return {
        "name": name, "data": data, "metric": metric, "reference": reference, "seeds": seeds, "arms": arms,
        "sentence": sentence_of(arms, reference, data, verdict.level, sequential) + readings_sentence(arms, reference, readings),
        "caveat": caveat_of(arms, len(seeds)),
        "margin": verdict.margin, "level": verdict.level, "frontier": frontier,
    }  # fmt: skip


def _means(groups: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every figure over the records that have it."""
    names = dict.fromkeys(name for group in groups for name in group)
    values = {name: [group[name] for group in groups if group.get(name) is not None] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items() if found}


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


def entry_of(records: Sequence[Mapping[str, Any]], label: str, metric: str, reference: str | None) -> dict[str, Any]:
    """What the runs of one arm say by themselves, and their time beside the reference's."""
    mine = {r["seed"]: r for r in records if r["arm"] == label and r["status"] == "ok"}
    entry: dict[str, Any] = {"n": len(mine), "failed": sum(r["arm"] == label for r in records) - len(mine)}
    entry["loss"] = mean_interval([r["test"]["loss"] for r in mine.values()]).as_dict() if mine else None
    entry["metric"] = mean_interval([r["test"][metric] for r in mine.values()]).as_dict() if mine else None
    for key in _MEANS:
        values = [record[key] for record in mine.values() if record.get(key) is not None]
        entry[key] = sum(values) / len(values) if values else None
    for group in ("calibration", "diversity", "telemetry"):
        entry[group] = _means([record.get(group) or {} for record in mine.values()])
    entry["causal"] = all(record.get("causal", True) for record in mine.values())
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


def judge(arms: dict[str, Any], compared: Mapping[str, Sequence[float]], verdict: Verdict, sequential: bool) -> None:
    """Intervals, p-values and the state of every arm's verdict: better, worse, equivalent, open, or None with one seed."""
    for entry in arms.values():
        entry |= {"difference": None, "p_sign_flip": None, "detectable": None, "state": None, "bca": None}
    for label, values in compared.items():
        entry = arms[label]
        entry["difference"] = mean_interval(values, 1 - verdict.level).as_dict()
        entry["p_t"] = _p_paired(values)
        entry["p_sign_flip"] = sign_flip_p(values)
        entry["p_equivalent"] = equivalence_p(values, verdict.margin)
        if len(values) > 1:
            bca = bca_interval(values, 1 - verdict.level)
            entry |= {"detectable": detectable_difference(values), "bca": bca.as_dict() if bca else None}
    for source, target in (("p_t", "p_holm"), ("p_equivalent", "p_equivalent")):
        tested = [label for label in compared if arms[label][source] is not None and not math.isnan(arms[label][source])]
        for label, adjusted in zip(tested, holm([arms[label][source] for label in tested]), strict=True):
            arms[label][target] = adjusted
    looks = look(compared, verdict.margin, verdict.level)
    for label, values in compared.items():
        entry = arms[label]
        if len(values) < 2:
            continue
        if sequential:
            entry |= {"difference": looks[label].interval.as_dict(), "sequential": looks[label].level}
            entry["state"] = looks[label].state
        elif entry.get("p_holm", 1.0) < verdict.level:
            entry["state"] = "better" if entry["difference"]["mean"] < 0 else "worse"
        else:
            entry["state"] = "equivalent" if entry["p_equivalent"] < verdict.level else "open"
        if entry["state"] == "open":
            needed = seeds_needed(values, alpha=verdict.level / len(compared))
            entry["seeds_needed"] = max(needed, len(values) + 1) if needed else None


def marks(record: Mapping[str, Any]) -> list[str]:
    """What must stand beside the name of a run wherever it is shown: what it leaks, if only in training, and whether its
    figures depend on the batch that it was evaluated in."""
    found = [f"leaks: {record['leaks']}"] if record.get("leaks") else []
    found += [f"training sees {record['leaks_in_training']}"] if record.get("leaks_in_training") else []
    return found + (["batch-coupled"] if record.get("evaluation_coupled") else [])


def _p_paired(differences: Sequence[float]) -> float | None:
    from scipy import stats

    if len(differences) < 2 or max(differences) == min(differences):
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
