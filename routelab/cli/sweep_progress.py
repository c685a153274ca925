"""State of a sweep on the terminal: a table of its arms, how much is done, and how long the rest takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table

from routelab.cli.output import console
from routelab.cli.progress import watching_table
from routelab.core.number_format import format_count

SweepProgress = tuple[Callable[[dict[str, Any]], None], Callable[[int, int, float], None]]
"""Two functions: of the status of the tuning, and of the progress of the comparison that follows."""


@contextlib.contextmanager
def watching_sweep(quiet: bool) -> Iterator[SweepProgress]:
    """Show the progress of a sweep: one live table on a terminal, lines elsewhere.

    Args:
        quiet: Whether to show nothing.

    Yields:
        Functions that show the tuning and the comparison, see `SweepProgress`.
    """
    started = time.monotonic()
    fraction_at_start: float | None = None
    status: dict[str, Any] = {}
    with watching_table(console(quiet)) as show:

        def show_tuning(new: dict[str, Any]) -> None:
            nonlocal fraction_at_start, status
            if fraction_at_start is None:
                fraction_at_start = fraction_done(new)
            status = new
            ending = _time_left(new, fraction_at_start, time.monotonic() - started)
            show(lambda: status_table(new, ending), f"{_headline(new)}{ending}")

        def show_comparison(done: int, total: int, fraction: float) -> None:
            ending = f", comparing the best settings on fresh seeds: {done}/{total} runs, {fraction:.0%} of the work"
            show(lambda: status_table(status, ending), f"{_headline(status)}{ending}")

        yield show_tuning, show_comparison


def fraction_done(status: Mapping[str, Any]) -> float:
    """Return the fraction of the budgets of all arms that is spent, 0 to 1."""
    parts = []
    for arm in status["arms"].values():
        of = arm["target"] or arm["flops_budget"]
        parts.append(min(1.0, (arm["states"].get("COMPLETE", 0) if arm["target"] else arm["flops"]) / of))
    return 1.0 if status["done"] else sum(parts) / len(parts)


def _time_left(status: Mapping[str, Any], before: float, seconds: float) -> str:
    gained = fraction_done(status) - before
    if gained <= 0 or status["done"]:
        return ""
    rest = seconds * (1 - fraction_done(status)) / gained
    return f", about {rest / 60:.0f} min left" if rest > 90 else f", about {rest:.0f} s left"


def _headline(status: Mapping[str, Any]) -> str:
    states = ", ".join(f"{count} {name.lower()}" for name, count in status["states"].items())
    lost = f" ({status['lost']} without a worker)" if status["lost"] else ""
    return f"{status['study']}: {fraction_done(status):.0%} done, trials {states or 'none yet'}{lost}"


def status_table(status: Mapping[str, Any], left: str = "") -> Table:
    """Return the table of a sweep's arms: trials by state, the best values, FLOPs.

    Args:
        status: Status of the sweep (`routelab.sweeps.studies.Studies.status`).
        left: End of the title.
    """
    table = Table(title=_headline(status) + left, header_style="")
    for name in ("arm", "complete", "running", "waiting", "pruned", "failed", *(f"best {each}" for each in status["objectives"]),
                 "of trial", "FLOPs spent"):  # fmt: skip
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for label, arm in status["arms"].items():
        states, best = arm["states"], arm["best"]
        done = f"{states.get('COMPLETE', 0)}" + (f"/{arm['target']}" if arm["target"] else "")
        values = [f"{value:.5g}" for value in best["values"]] if best else ["-"] * len(status["objectives"])
        spent = format_count(arm["flops"]) + (f"/{format_count(arm['flops_budget'])}" if arm["flops_budget"] else "")
        others = [str(states.get(state, 0)) for state in ("RUNNING", "WAITING", "PRUNED", "FAIL")]
        mark = " (given up)" if arm["given_up"] else ""
        table.add_row(label + mark, done, *others, *values, str(best["trial"]) if best else "-", spent)
    return table
