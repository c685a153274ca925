"""Console, JSON and the tables that several commands print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from routelab.core.number_format import (
    format_change_in_table,
    format_count,
    format_count_with_ratio,
    format_half_width,
    format_optional,
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


def table(summary: dict[str, Any]) -> Table:
    """Paired means with intervals, and the triad of FLOPs, active and total parameters."""
    from routelab.report.arm_labels import marked

    metric = summary["metric"]
    out = Table(title=None, header_style="")
    # Without a reference there are no differences.
    against = [f"loss vs {summary['reference']}"] if summary["reference"] else []
    for name in ("arm", "test loss", metric, *against, "FLOPs/ex", "ratio", "train GFLOPs", "executed", "active", "total", "s",
                 "dropped", "load CV"):  # fmt: skip
        out.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for label, arm in summary["arms"].items():
        mark = "" if arm["n"] and not arm["failed"] else f" ({arm['failed']} failed)"
        out.add_row(
            marked(label, arm["marks"]) + mark,
            format_half_width(arm["loss"]),
            format_half_width(arm["metric"]),
            *([format_change_in_table(arm["difference"])] if against else []),
            format_count(arm["flops_per_example"]),
            format_optional(arm["flops_ratio"], ".3f"),
            format_optional(arm["flops_model"], ".1f", 1e9),
            format_optional(arm["flops_executed"], ".1f", 1e9),
            format_count_with_ratio(arm["active_params"], arm["active_ratio"]),
            format_count_with_ratio(arm["total_params"], arm["total_ratio"]),
            format_optional(arm["seconds"], ".1f"),
            format_optional(arm["drop_rate"], ".1%"),
            format_optional(arm["load_cv"], ".2f"),
        )
    return out


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
