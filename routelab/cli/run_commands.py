"""Recorded runs on the terminal: trained again, or set side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from routelab.cli.output import console, print_json, watching
from routelab.tracking.artifacts import store_at

_WIDEST = 60


def replay(run: str, uri: str, as_json: bool) -> int:
    """Train a recorded run again; exit code 1 if a number differs."""
    from routelab.comparison.replay import replay
    from routelab.records.run_lookup import find_record

    before, out = find_record(run, store_at(uri)), console(quiet=as_json)
    if before["status"] == "ok":
        out.print(f"{before['arm']} on {before['data']}, seed {before['seed']}: {before['steps']} steps, recorded by "
                  f"`{(before.get('provenance') or {}).get('command')}`")  # fmt: skip
    with watching(out) as show:
        done = replay(before, lambda share: show(0, 1, share))
    if as_json:
        print_json(
            {"equal": done.difference is None, "points": done.points, "difference": done.difference, "changed": done.changed}
        )
    elif done.difference is None:
        out.print(f"equal to the last bit: all losses at {done.points} points of the curve, on validation and on test")
    else:
        where, old, new = done.difference
        out.print(f"differs first in {where}: {old!r} then, {new!r} now")
    _differences(out, "not as it was then", done.changed)
    return 0 if done.difference is None else 1


def report(experiments: list[str], as_json: bool) -> None:
    """Write one comparison's report anew, or print several in one table."""
    from routelab.comparison.results import across, report_again

    out = console(quiet=as_json)
    if len(experiments) == 1:
        path, summary = report_again(experiments[0])
        if as_json:
            print_json(summary)
        out.print(summary["sentence"])
        out.print(f"Report: {path}")
        return
    place = Path("results") / "across.json"
    found = across(experiments, place=place)
    if as_json:
        print_json(found)
    grid = Table(header_style="")
    for name in ("arm", f"log loss vs {found['reference']} (IQM)", "probability of improvement", "mean rank", "data sets"):
        grid.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    placed = (found["ranks"] or {}).get("mean", {})
    for label, arm in found["arms"].items():
        each = arm["interquartile_mean"]
        interval = f"{each['mean']:+.4f} [{each['low']:+.4f}, {each['high']:+.4f}]"
        rank = f"{placed[label]:.2f}" if label in placed else "-"
        grid.add_row(label, interval, f"{arm['probability_of_improvement']:.2f}", rank, str(len(arm["data"])))
    out.print(grid)
    out.print("IQM: mean of the middle half of all paired differences, 95% stratified bootstrap; below 0 is better")
    if found["ranks"]:
        out.print(
            f"Friedman p={found['ranks']['p']:.2g}; mean ranks further apart than {found['ranks']['critical']:.2f} differ (Nemenyi)"
        )
    else:
        out.print("Ranks are tested from five data sets and three arms on")
    out.print(f"Table: {place}")


def explain(first: str, second: str, uri: str, as_json: bool) -> int:
    """Print what differs between two runs."""
    from routelab.comparison.replay import explain
    from routelab.records.run_lookup import find_record

    records, out = [find_record(run, store_at(uri)) for run in (first, second)], console(quiet=as_json)
    found = explain(*records)
    if as_json:
        print_json(found)
        return 0
    if not any(found.values()):
        out.print("the two records are equal")
    for part, differing in found.items():
        _differences(out, part, differing)
    return 0


def _differences(out: Any, title: str, differing: Mapping[str, tuple[Any, Any]]) -> None:
    if not differing:
        return
    out.print(f"{title}:")
    width = max(len(key) for key in differing)
    for key, (old, new) in differing.items():
        out.print(f"  {key:<{width}}  {_short(old)} | {_short(new)}")


def _short(value: Any) -> str:
    text = " ".join(("none" if value is None else str(value)).split())
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
