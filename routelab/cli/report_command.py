"""`routelab report`: one comparison's report written anew, or several comparisons in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from routelab.cli.arguments import JsonOption


def report_command(
    experiments: Annotated[
        list[str],
        typer.Argument(metavar="EXPERIMENT...", help="Names in results/, or folders. Several: arms over all of them."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a comparison's report anew; or, of several comparisons, one table over their data sets.

    Example: routelab report digits letter flights
    """
    from routelab.cli.output import console, print_json
    from routelab.comparison.cross_dataset import across
    from routelab.comparison.results import report_again
    from routelab.report.interval_labels import SEEDS_ALONE, is_older

    out = console(quiet=as_json)
    if len(experiments) == 1:
        path, summary = report_again(experiments[0])
        if as_json:
            print_json(summary)
        out.print(summary["sentence"])
        if is_older(summary) and summary["reference"]:
            out.print(SEEDS_ALONE)
        out.print(f"Report: {path}")
        return
    path = Path("results") / "across.json"
    summary = across(experiments, place=path)
    if as_json:
        print_json(summary)
    print_across(out, summary)
    out.print(f"Table: {path}")


def print_across(out: Any, summary: dict[str, Any]) -> None:
    """Print the table of arms over several data sets, and the test of their ranks.

    Args:
        out: Console of `routelab.cli.output.console`.
        summary: Return value of `routelab.comparison.cross_dataset.across`.
    """
    from rich.table import Table

    grid = Table(header_style="")
    for name in ("arm", f"log loss vs {summary['reference']} (IQM)", "probability of improvement", "mean rank", "data sets"):
        grid.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    mean_ranks = (summary["ranks"] or {}).get("mean", {})
    for label, arm in summary["arms"].items():
        change = arm["interquartile_mean"]
        interval = f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"
        rank = f"{mean_ranks[label]:.2f}" if label in mean_ranks else "-"
        grid.add_row(label, interval, f"{arm['probability_of_improvement']:.2f}", rank, str(len(arm["data"])))
    out.print(grid)
    out.print("IQM: mean of the middle half of all paired differences, 95% stratified bootstrap; below 0 is better")
    out.print("Differences are over training seeds; test units are not counted here")
    if summary["ranks"]:
        ranks = summary["ranks"]
        out.print(f"Friedman p={ranks['p']:.2g}; mean ranks further apart than {ranks['critical']:.2f} differ (Nemenyi)")
    else:
        out.print("Ranks are tested from five data sets and three arms on")
