"""Finished comparisons: reading one from disk, and writing its report again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from routelab.comparison.verdict import verdict_of
from routelab.core.errors import UsageError, unknown
from routelab.records.json_io import read_json
from routelab.records.run_cache import cell_folder
from routelab.report.comparison_report import write_report
from routelab.report.interval_labels import is_older


def cells_of(records: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """What a summary remembers of its runs: label, seed and the address of the cell."""
    return [[record["arm"], record["seed"], (record.get("provenance") or {}).get("cell")] for record in records]


_KNOWN = {"cells", "arms", "reference", "metric", "sentence", "caveat", "tuned", "rows"}
"""What a summary of this version has, and a damaged or older one may not."""


def finished_comparison(name: str, results: Path = Path("results")) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """Folder, summary and records of a comparison; UsageError if there is none.

    name: the folder of a comparison, or its name in `results`.
    """
    folder = next((place for place in (Path(name), results / name) if (place / "summary.json").is_file()), None)
    if folder is None:
        for place in (Path(name), results / name):
            if (place / "comparison.json").is_file():
                raise UsageError(
                    f"experiment {name!r} has not finished; the `routelab compare` that began it goes on where it stopped"
                )
        there = sorted(path.parent.name for path in results.glob("*/summary.json"))
        raise unknown("experiment", name, there)
    summary = read_json(folder / "summary.json")
    if summary is None or not summary.keys() >= _KNOWN or not isinstance(summary["cells"], list):
        raise UsageError(
            f"experiment {name!r}: {str(folder / 'summary.json')!r} is damaged, or of an older version; compare again"
        )
    records = []
    for label, seed, key in summary["cells"]:
        found = read_json(cell_folder(folder, str(key)) / "record.json")
        lost = {"seed": seed, "status": "failed", "error": "its record is gone", "test": {}, "curve": []}
        records.append({**(found or lost), "arm": label})
    return folder, summary, records


def report_again(name: str, results: Path = Path("results")) -> tuple[Path, dict[str, Any]]:
    """Write a comparison's report and figures anew from what is on disk; its path, and the summary."""
    folder, summary, records = finished_comparison(name, results)
    summary = _restated(summary) if is_older(summary) else summary
    write_report(folder / "report.html", summary, records)
    return folder / "report.html", summary


def _restated(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary of an earlier version with its verdicts in the words of this one.

    Earlier verdicts advised a number of seeds to add. Adding them after a verdict raises the error rate.
    """
    reference = summary["reference"]
    arms = {label: {**arm, "verdict": verdict_of(label, arm, reference)} for label, arm in summary["arms"].items()}
    pairs = [{**pair, "verdict": verdict_of(pair["arm"], pair, pair["against"])} for pair in summary.get("pairs") or ()]
    return {**summary, "arms": arms, "pairs": pairs}
