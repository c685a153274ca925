"""Console, JSON and the tables that several commands print."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from routelab.core.number_format import (
    format_change_in_table,
    format_change_size,
    format_count,
    format_count_with_ratio,
    format_half_width,
    format_optional,
    join_names,
    pluralise,
)
from routelab.records.json_io import plain

_MAX_VALUE_CHARACTERS = 60


def console(quiet: bool = False) -> Console:
    """A console that never cuts text when its output is not a terminal."""
    terminal = Console(quiet=quiet, highlight=False, markup=False, soft_wrap=False)
    return terminal if terminal.is_terminal else Console(quiet=quiet, highlight=False, markup=False, width=220)


def print_json(value: Any) -> None:
    """Print a value for machines, on one line. JSON has no NaN: it becomes null, as infinities do."""
    print(json.dumps(plain(value), default=str), flush=True)


def show_config(resolved: Any, as_json: bool) -> None:
    """Print a resolved configuration and where each value came from."""
    if as_json:
        print_json(resolved.rows())
    else:
        typer.echo(resolved.describe())


_EXPENDABLE = (
    "executed", "load CV", "s", "train GFLOPs", "total", "active", "FLOPs/ex", "metric", "dropped", "ratio", "standard errors",
)  # fmt: skip
"""Columns that `print_table` can leave out on a narrow terminal, the one that is missed least first."""


def table(summary: dict[str, Any], without: Collection[str] = ()) -> Table:
    """Return the paired means with intervals and standard errors, and the triad of FLOPs, active and total parameters.

    Args:
        summary: Summary of a comparison.
        without: Columns of `_EXPENDABLE` to leave out.
    """
    from routelab.report.arm_labels import marked
    from routelab.report.interval_labels import unit_of

    reference, unit = summary["reference"], pluralise(unit_of(summary))
    arms = list(summary["arms"].items())
    # A column is a kind, a heading and a cell for each arm.
    columns: list[tuple[str, str, list[str | Text]]] = [
        ("arm", "arm", [marked(label, arm["marks"]) + _failed(arm) for label, arm in arms]),
        ("loss", "test loss", [format_half_width(arm["loss"]) for _, arm in arms]),
        ("metric", summary["metric"], [format_half_width(arm["metric"]) for _, arm in arms]),
    ]
    if reference:
        columns.append(("difference", f"loss vs {reference}", [format_change_in_table(arm["difference"]) for _, arm in arms]))
        for key, heading in (("seed_error", "SE seeds"), ("unit_error", f"SE {unit}")):
            if any((arm["difference"] or {}).get(key) is not None for _, arm in arms):
                columns.append(("standard errors", heading, [_standard_error(arm["difference"], key) for _, arm in arms]))
    columns += [
        ("FLOPs/ex", "FLOPs/ex", [format_count(arm["flops_per_example"]) for _, arm in arms]),
        ("ratio", "ratio", [format_optional(arm["flops_ratio"], ".3f") for _, arm in arms]),
        ("train GFLOPs", "train GFLOPs", [format_optional(arm["flops_model"], ".1f", 1e9) for _, arm in arms]),
        ("executed", "executed", [format_optional(arm["flops_executed"], ".1f", 1e9) for _, arm in arms]),
        ("active", "active", [format_count_with_ratio(arm["active_params"], arm["active_ratio"]) for _, arm in arms]),
        ("total", "total", [format_count_with_ratio(arm["total_params"], arm["total_ratio"]) for _, arm in arms]),
        ("s", "s", [format_optional(arm["seconds"], ".1f") for _, arm in arms]),
        ("dropped", "dropped", [format_optional(arm["drop_rate"], ".1%") for _, arm in arms]),
        ("load CV", "load CV", [format_optional(arm["load_cv"], ".2f") for _, arm in arms]),
    ]
    columns = [column for column in columns if column[0] not in without]
    out = Table(title=None, header_style="")
    for kind, heading, _ in columns:
        out.add_column(heading, justify="left" if kind == "arm" else "right", no_wrap=True)
    for row in zip(*(cells for _, _, cells in columns), strict=True):
        out.add_row(*row)
    return out


def print_table(out: Console, summary: dict[str, Any]) -> None:
    """Print the table of a comparison, as wide as it is; on a terminal, without the columns that do not fit.

    Args:
        out: Console.
        summary: Summary of the comparison.
    """
    unlimited = out.options.update(max_width=10_000)
    without = set(_EXPENDABLE) if out.is_terminal else set()
    for name in reversed(_EXPENDABLE):
        if Measurement.get(out, unlimited, table(summary, without - {name})).maximum <= out.width:
            without -= {name}
    fitting = table(summary, without)
    width = out.width
    if not out.is_terminal:
        out.width = max(width, Measurement.get(out, unlimited, fitting).maximum)
    out.print(fitting)
    out.width = width
    if without:
        named = [summary["metric"] if name == "metric" else name for name in _EXPENDABLE if name in without]
        out.print(f"Too narrow for {join_names(named)}; report.html has them")


def _failed(arm: Mapping[str, Any]) -> str:
    if arm["n"] and not arm["failed"]:
        return ""
    diverged = arm.get("diverged") or 0
    counts = {"diverged": diverged, "failed": arm["failed"] - diverged}
    return f" ({', '.join(f'{count} {what}' for what, count in counts.items() if count) or '0 runs'})"


def _standard_error(difference: Mapping[str, Any] | None, key: str) -> str | Text:
    """Return a standard error of a difference in percent, the larger one of two in bold."""
    from routelab.report.interval_labels import larger_error

    value = (difference or {}).get(key)
    if value is None:
        return "-"
    text = format_change_size(value)
    return Text(text, style="bold") if key == larger_error(difference) else text


def print_differences(out: Console, title: str, differing: Mapping[str, tuple[Any, Any]]) -> None:
    """Print a line for each key with its two values, below a title; nothing if there is no key."""
    if not differing:
        return
    out.print(f"{title}:")
    width = max(len(key) for key in differing)
    for key, (old, new) in differing.items():
        out.print(f"  {key:<{width}}  {_shorten(old)} | {_shorten(new)}")


def _shorten(value: Any) -> str:
    text = " ".join(("none" if value is None else str(value)).split())
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[: _MAX_VALUE_CHARACTERS - 3]}..."
