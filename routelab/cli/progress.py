"""Progress of long commands: a bar or a live table on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

MIN_SECONDS_BETWEEN_LINES = 10.0
MAX_LINES = 20
"""Two lines are MIN_SECONDS_BETWEEN_LINES apart, or 1 / MAX_LINES of the time since the start if that is longer."""


class ProgressLines:
    """Printer of progress lines: one every ten seconds, and fewer the longer the command takes."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._started = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def print(self, line: str) -> None:
        """Print the line, unless the previous line was printed too recently."""
        now = time.monotonic()
        if now - self._last > max(MIN_SECONDS_BETWEEN_LINES, (now - self._started) / MAX_LINES):
            self._last = now
            self._out.print(line)


@contextlib.contextmanager
def watching(out: Console) -> Iterator[Any]:
    """Show the progress of runs: a bar on a terminal, lines elsewhere.

    Yields:
        Function of the number of finished runs, the number of all runs, and the fraction of the work that is done.
    """
    if _is_live(out):
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn())
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=out) as bar:
            task = bar.add_task("training", total=1.0)

            def show(done: int, total: int, fraction: float) -> None:
                bar.update(task, completed=fraction, description=f"{done}/{total} runs")

            yield show
        return
    lines = ProgressLines(out)
    planned, began = 0, 0.0

    def print_line(done: int, total: int, fraction: float) -> None:
        nonlocal planned, began
        if total != planned:
            # Further runs were added, of which the fraction is.
            planned, began = total, lines.seconds
        if fraction > 0:
            # Workers start in the first seconds, so that an estimate from these would be too long.
            left = f", about {(lines.seconds - began) * (1 - fraction) / fraction:.0f} s left" if fraction >= 0.02 else ""
            lines.print(f"{done}/{total} runs, {fraction:.0%} of the work{left}")

    yield print_line


@contextlib.contextmanager
def watching_table(out: Console) -> Iterator[Callable[[Callable[[], RenderableType], str], None]]:
    """Show a table that changes: in place on a terminal, as lines elsewhere.

    Yields:
        Function of a builder of the table, and of the line that stands for the table elsewhere.
    """
    if _is_live(out):
        with Live(console=out, refresh_per_second=2) as live:
            yield lambda build, line: live.update(build())
        return
    lines = ProgressLines(out)
    yield lambda build, line: lines.print(line)


def _is_live(out: Console) -> bool:
    return out.is_terminal and not out.quiet
