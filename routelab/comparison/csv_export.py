"""The CSV files of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from routelab.comparison.grid import Row
from routelab.core.number_format import finite
from routelab.records.csv_io import write_csv
from routelab.report.interval_labels import larger_error, sources_of

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


_ESTIMATE = (
    "mean", "low", "high", "standard_error", "degrees_of_freedom", "seed_error", "unit_error", "n", "units",
)  # fmt: skip
_LARGER = {"seed_error": "seeds", "unit_error": "examples", None: None}
_TESTS = ("p_t", "p_holm", "p_equivalent", "supported_margin", "state", "withheld")


def write_differences(path: Path, summary: Mapping[str, Any]) -> None:
    """Write differences.csv: a row for each estimate of a comparison.

    The rows are an arm's own loss and metric, its differences from the reference, both by domain, and the differences of pairs.
    In rows of an arm's own loss or metric, `against` is empty and `difference` is the value itself. "log_loss" is a difference of
    log test losses. `covered` names the sources of uncertainty that `standard_error` and the interval cover, and `larger` the one
    with the larger standard error. Columns from `p` to `withheld` belong to claims, which are about the log loss of all test data.

    Args:
        path: Path of the file.
        summary: Summary of the comparison.
    """
    metric, reference = summary["metric"], summary["reference"]
    lines: list[list[Any]] = [
        ["arm", "against", "domain", "metric", "difference", "low", "high", "standard_error", "degrees_of_freedom", "seed_error",
         "unit_error", "seeds", "units", "covered", "p", "p_holm", "p_equivalent", "supported_margin", "state", "withheld", "larger"]
    ]  # fmt: skip

    def add(
        arm: str, against: Any, domain: str, name: str, estimate: Mapping[str, Any] | None, claim: Mapping[str, Any]
    ) -> None:
        if estimate is None:
            return
        values = [finite(estimate[key]) for key in _ESTIMATE[:-2]] + [estimate[key] for key in _ESTIMATE[-2:]]
        tests = [claim.get(key) for key in _TESTS]
        tests = [finite(value) if isinstance(value, float) else value for value in tests]
        larger = _LARGER.get(larger_error(estimate))
        lines.append([arm, against, domain, name, *values, "+".join(sources_of(estimate)), *tests, larger])

    for label, arm in summary["arms"].items():
        add(label, None, "", "loss", arm["loss"], {})
        add(label, None, "", metric, arm["metric"], {})
        add(label, reference, "", "log_loss", arm["difference"], arm)
        add(label, reference, "", metric, arm["metric_difference"], {})
        for domain, results in arm["by_domain"].items():
            add(label, None, domain, "loss", results["loss"], {})
            add(label, reference, domain, "log_loss", results["difference"], {})
    for pair in summary.get("pairs") or ():
        add(pair["arm"], pair["against"], "", "log_loss", pair["difference"], pair)
        add(pair["arm"], pair["against"], "", metric, pair["metric_difference"], {})
    write_csv(path, lines)
