"""The CSV files of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from routelab.comparison.grid import Row
from routelab.records.csv_io import write_csv

_TAIL = (
    "flops_model", "flops_executed", "flops_per_example", "active_params", "total_params", "seconds", "drop_rate", "load_cv",
    "causal", "status",
)  # fmt: skip


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
    """endpoints.csv: where every run ended, at all sizes and shares of the budget; a last column, initial_flops, where an arm
    builds on an earlier run."""
    by_label = {row.label: row for row in rows}
    earlier = ["initial_flops"] if any(record.get("initial_flops") for record in records) else []
    lines: list[list[Any]] = [
        ["arm", "size", "budget", "seed", "flops_model", "test_loss", "validation_loss", "total_params", "seconds", *earlier]
    ]
    for record in records:
        row = by_label[record["arm"]]
        losses = [(record.get(split) or {}).get("loss") for split in ("test", "validation")]
        costs = record.get("flops_model"), *losses, record.get("total_params"), record.get("seconds")
        lines.append([row.arm, row.size, row.share, record["seed"], *costs, *(record.get(name) for name in earlier)])
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
