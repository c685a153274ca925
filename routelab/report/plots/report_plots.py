"""The figures of a report, each with the numbers that it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from routelab.records.csv_io import write_csv
from routelab.report.plots.arm_plots import diversity, forest, load_maps, loss_curves, tuning_budget
from routelab.report.plots.cost_plots import isoflop, leverage_by_target, quality_per_flop, time_against_flops
from routelab.report.plots.pairwise_plots import pairs
from routelab.report.plots.plot_style import Drawn, Record, save_png, style
from routelab.report.plots.series_plots import series


def figures_of(summary: Mapping[str, Any], records: Sequence[Record]) -> list[Drawn]:
    """Every figure that there are numbers for. records: of the arms, and of the ladder's rungs and other budgets."""
    import matplotlib

    makers: list[Callable[[Mapping[str, Any], Sequence[Record]], Drawn | None]] = [
        forest, pairs, loss_curves, quality_per_flop, leverage_by_target, isoflop, time_against_flops, diversity, tuning_budget,
    ]  # fmt: skip
    with matplotlib.rc_context(style()):
        found = [*series(summary), *(make(summary, records) for make in makers), *load_maps(summary, records)]
    return [drawn for drawn in found if drawn is not None]


def save_figures(drawn: Sequence[Drawn], folder: Path) -> None:
    """NAME.png and NAME.csv of each in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in drawn:
        save_png(each.figure, folder / f"{each.name}.png")
        write_csv(folder / f"{each.name}.csv", each.table)
