"""From records to a table: means, paired intervals, and a sentence for each arm."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from routelab.comparison.statistics import (
    Interval,
    detectable_difference,
    holm,
    mean_interval,
    paired_interval,
    sign_flip_p,
    smallest_sign_flip_p,
)
from routers.errors import UsageError

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
)


def write_results(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """results.csv: one row per arm and seed, columns as design.md §4 names them."""
    metric = next((record["metric"] for record in records if record.get("metric")), "accuracy")
    column = metric if metric == "bits_per_byte" else f"test_{metric}"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "data", "test_loss", column, *_TAIL])
    for record in records:
        test = record.get("test") or {}
        row = [record["arm"], record["seed"], record["data"], test.get("loss"), test.get(metric)]
        values = [record.get(name) for name in _TAIL]
        row += [str(value).lower() if isinstance(value, bool) else value for value in values]
        writer.writerow(["" if value is None else value for value in row])
    try:
        path.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def summarise(
    name: str,
    records: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    reference: str | None,
    ratios: Mapping[str, float | None],
) -> dict[str, Any]:
    """The summary of a comparison (summary.json). Differences are in log loss, paired by seed, against the reference."""
    good = {label: {r["seed"]: r for r in records if r["arm"] == label and r["status"] == "ok"} for label in labels}
    metric = next((record["metric"] for record in records if record.get("metric")), "accuracy")
    seeds = sorted({record["seed"] for record in records})
    base = good.get(reference, {}) if reference else {}
    arms: dict[str, Any] = {}
    for label in labels:
        mine = good[label]
        entry: dict[str, Any] = {"n": len(mine), "failed": sum(r["arm"] == label for r in records) - len(mine)}
        entry["loss"] = _interval(mean_interval([r["test"]["loss"] for r in mine.values()])) if mine else None
        entry["metric"] = _interval(mean_interval([r["test"][metric] for r in mine.values()])) if mine else None
        for key in _MEANS:
            values = [record[key] for record in mine.values() if record.get(key) is not None]
            entry[key] = sum(values) / len(values) if values else None
        entry["flops_ratio"] = ratios.get(label)
        entry["causal"] = all(record.get("causal", True) for record in mine.values())
        entry["leaks"] = next((record["leaks"] for record in mine.values() if record.get("leaks")), None)
        entry["marks"] = sorted({mark for record in mine.values() for mark in marks(record)}, reverse=True)
        entry |= {"difference": None, "p_sign_flip": None, "detectable": None}
        shared = sorted(set(mine) & set(base))
        if label != reference and shared:
            a, b = ([math.log(max(side[s]["test"]["loss"], 1e-12)) for s in shared] for side in (mine, base))
            differences = [x - y for x, y in zip(a, b, strict=True)]
            entry["difference"] = _interval(paired_interval(a, b))
            entry["p_t"] = _p_paired(differences)
            entry["p_sign_flip"] = sign_flip_p(differences) if len(differences) <= 16 else None
            entry["detectable"] = detectable_difference(differences) if len(differences) > 1 else None
        arms[label] = entry
    tested = [label for label in labels if arms[label].get("p_t") is not None]
    for label, adjusted in zip(tested, holm([arms[label]["p_t"] for label in tested]), strict=True):
        arms[label]["p_holm"] = adjusted
    for label in labels:
        arms[label]["verdict"] = _verdict(label, arms[label], reference)
    data = records[0]["data"] if records else name
    return {
        "name": name, "data": data, "metric": metric, "reference": reference, "seeds": seeds, "arms": arms,
        "sentence": _sentence(arms, reference, data), "caveat": _caveat(arms, len(seeds)),
    }  # fmt: skip


def marks(record: Mapping[str, Any]) -> list[str]:
    """What must stand beside the name of a run wherever it is shown: what it leaks, and whether its figures depend on the
    batch that it was evaluated in."""
    found = [f"leaks: {record['leaks']}"] if record.get("leaks") else []
    return found + (["batch-coupled"] if record.get("evaluation_coupled") else [])


def marked(label: str, given: Sequence[str] | None) -> str:
    """A label with its marks: "soft (leaks: later tokens)"."""
    return f"{label} ({', '.join(given)})" if given else label


def _interval(value: Interval) -> dict[str, Any]:
    return {"mean": value.mean, "low": value.low, "high": value.high, "n": value.n}


def _p_paired(differences: Sequence[float]) -> float | None:
    from scipy import stats

    if len(differences) < 2 or max(differences) == min(differences):
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _verdict(label: str, entry: Mapping[str, Any], reference: str | None) -> str:
    if label == reference:
        return "the reference"
    if entry["n"] == 0:
        return "failed on every seed"
    difference = entry["difference"]
    if reference is None or difference is None:
        return "no reference to compare with"
    low, mean, high = (math.expm1(difference[part]) * 100 for part in ("low", "mean", "high"))
    if difference["n"] < 2:
        return f"test loss {mean:+.1f}% against {reference}; one seed gives no interval"
    where = f"test loss {mean:+.1f}% [{low:+.1f}, {high:+.1f}] against {reference}, n={difference['n']}"
    adjusted = entry.get("p_holm")
    if adjusted is not None and adjusted < 0.05:
        return f"{'better' if mean < 0 else 'worse'}: {where}, Holm p={adjusted:.2g}"
    return f"undecided: {where}"


def _sentence(arms: Mapping[str, Any], reference: str | None, data: str) -> str:
    better, worse, open_ = (
        [marked(label, arm.get("marks")) for label, arm in arms.items() if arm["verdict"].startswith(start)]
        for start in ("better", "worse", "undecided")
    )
    if reference is None:
        return f"On {data}, no arm is the reference (match.reference), so there are no paired differences."
    parts = []
    if better:
        parts.append(f"{_list(better)} had a lower test loss than {reference}")
    if worse:
        parts.append(f"{_list(worse)} had a higher test loss than {reference}")
    if open_:
        parts.append(f"{_list(open_)} could not be told apart from {reference}")
    text = "; ".join(parts) or "no arm could be compared"
    return f"On {data}, at equal forward FLOPs per example: {text} (Holm-adjusted paired t-intervals, 95%)."


def _caveat(arms: Mapping[str, Any], seeds: int) -> str:
    detectable = [arm["detectable"] for arm in arms.values() if arm.get("detectable")]
    text = (
        f"With {seeds} seeds the smallest possible exact sign-flip p is {smallest_sign_flip_p(seeds):.4g}"
        f"{', so that test can never reach .05' if smallest_sign_flip_p(seeds) > 0.05 else ''}"
    )
    detectable = [value for value in detectable if math.isfinite(value)]
    if detectable:
        low, high = (math.expm1(value) * 100 for value in (min(detectable), max(detectable)))
        text += f"; before adjustment, differences in test loss below about {low:.0f}% to {high:.0f}% (by arm) would mostly be missed"
    return text + ". The test split is fixed: intervals cover training randomness only."


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
