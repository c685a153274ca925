"""Arms over several finished comparisons, each on its own data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from routelab.comparison.metric_tables import MetricTables, contrasts_against
from routelab.comparison.results import finished_comparison
from routelab.comparison.statistics.cross_dataset_statistics import interquartile_mean, probability_of_improvement, ranks
from routelab.core.errors import UsageError
from routelab.records.json_io import write_json


def across(names: Sequence[str], results: Path = Path("results"), place: Path | None = None) -> dict[str, Any]:
    """Arms over several comparisons, each on a data set of its own, against their common reference.

    Arms are matched by label; one that is missing somewhere is judged by where it is. UsageError if two are on the same data, or
    have not the same reference. Returned, and left in `place`, are for
    each arm the interquartile mean of its differences in log loss, its probability of improvement and its data sets; ranks
    with Friedman's p and Nemenyi's critical difference from five data sets on; `covered`, the sources of uncertainty.
    """
    found = [finished_comparison(name, results) for name in names]
    folders = [folder.resolve() for folder, _, _ in found]
    for number, (name, folder) in enumerate(zip(names, folders, strict=True)):
        if folder in folders[:number]:
            raise UsageError(f"experiment {name!r} is named twice; each counts once")
    references = {summary["reference"] for _, summary, _ in found}
    reference = references.pop()
    if references or reference is None:
        raise UsageError(f"experiments {', '.join(names)} must have one reference; theirs differ, or one has none")
    _must_differ(names, [records for _, _, records in found])
    gaps: dict[str, dict[str, list[float]]] = {}
    losses: dict[str, dict[str, list[float]]] = {}
    for name, (_, summary, records) in zip(names, found, strict=True):
        labels = list(summary["arms"])
        for label, contrast in contrasts_against(reference, labels, MetricTables(records)).items():
            gaps.setdefault(label, {})[name] = contrast.values_S.tolist()
        for record in records:
            if record["status"] == "ok" and record["arm"] in labels:
                losses.setdefault(record["arm"], {}).setdefault(name, []).append(record["test"]["loss"])
    arms = {
        label: {
            "interquartile_mean": asdict(interquartile_mean(values)),
            "probability_of_improvement": probability_of_improvement(losses[label], losses[reference]),
            "data": list(values),
        }
        for label, values in gaps.items()
    }
    means = {arm: {name: sum(values) / len(values) for name, values in of.items()} for arm, of in losses.items()}
    everywhere = {arm: of for arm, of in means.items() if len(of) == len(names)}
    placed = ranks(everywhere)
    # The runs' test units are not read.
    result = {
        "experiments": list(names), "reference": reference, "arms": arms, "ranks": asdict(placed) if placed else None,
        "covered": ["seeds"],
    }  # fmt: skip
    if place is not None:
        write_json(place, result)
    return result


def _must_differ(names: Sequence[str], records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """UsageError if two comparisons are on the same data, which would count as two data sets."""
    seen: dict[str, str] = {}
    for name, of in zip(names, records, strict=True):
        digest = next((found for record in of if (found := (record.get("provenance") or {}).get("data_digest"))), None)
        if digest in seen:
            raise UsageError(
                f"experiments {seen[digest]!r} and {name!r} are on the same data (digest {digest}), which counts once"
            )
        if digest is not None:
            seen[digest] = name
