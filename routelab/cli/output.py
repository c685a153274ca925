"""Console, JSON and the tables that several commands print."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

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
            _mean(arm["loss"]), _mean(arm["metric"]), *([_change(arm["difference"])] if against else []), number_of(arm["flops_per_example"]),
            _number(arm["flops_ratio"], ".3f"), _number(arm["flops_model"], ".1f", 1e9), _number(arm["flops_executed"], ".1f", 1e9),
            _sized(arm["active_params"], arm["active_ratio"]), _sized(arm["total_params"], arm["total_ratio"]), _number(arm["seconds"], ".1f"),
            _number(arm["drop_rate"], ".1%"), _number(arm["load_cv"], ".2f"),
        )  # fmt: skip
    return out


def _sized(value: float | None, ratio: float | None) -> str:
    """A count, and how many times the reference's it is."""
    return number_of(value) if ratio is None else f"{number_of(value)} {ratio:.2f}x"


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


def _mean(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    half = value["high"] - value["mean"]
    return f"{value['mean']:.4f}" + (f" ±{half:.4f}" if math.isfinite(half) else "")


def _change(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    low, mean, high = (math.expm1(value[part]) * 100 for part in ("low", "mean", "high"))
    return f"{mean:+.1f}% [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else f"{mean:+.1f}%"


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None else format(value / unit, form)


def number_of(value: float | None) -> str:
    """A count in three digits and a letter: 1.5G."""
    if value is None:
        return "n/a"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.0f}"
