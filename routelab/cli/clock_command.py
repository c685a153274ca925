"""`routelab clock`: the latency of one trained run beside dense models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routelab.cli.arguments import DEFAULT_TRACKING_URI, JsonOption, TrackingUriOption, parse_counts
from routelab.core.errors import UsageError, unknown
from routelab.core.number_format import format_count

if TYPE_CHECKING:
    from rich.table import Table


def clock_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its cell's address, or its id in MLflow.")],
    uri: TrackingUriOption = DEFAULT_TRACKING_URI,
    output: Annotated[str | None, typer.Option(help="Where numbers and figures go (RUN's folder, in clock/).")] = None,
    sizes: Annotated[str, typer.Option(help="Batch sizes, in examples (of texts: windows).")] = "1,4,16,64,256,1024,4096",
    rounds: Annotated[int, typer.Option(help="Readings of each model at each size, in turns; 6 or more give intervals.")] = 15,
    longest: Annotated[float, typer.Option(help="Seconds of a pass after which larger batches are left out.")] = 3.0,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="On one thread, whose time at work is counted: for a busy machine.")
    ] = False,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16 (on a GPU bfloat16, else float32).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the latency of a mixture against dense models of equal FLOPs and of equal parameters.

    Example: routelab clock results/language/topk-s0 --sizes 1,16,256
    """
    batch_sizes = parse_counts("--sizes", sizes, "1,16,256")
    for option, value in (("rounds", rounds), ("longest", longest)):
        if not value > 0:
            raise UsageError(f"--{option} is {value}; it must be above 0")
    from routelab.analysis.latency.inference_precision import PRECISIONS
    from routelab.analysis.latency.latency_plots import figures_of, machine, table
    from routelab.analysis.latency.measure import Settings, clock
    from routelab.analysis.latency.summary_text import sentences
    from routelab.analysis.trained_run import open_run
    from routelab.cli.output import console, print_json
    from routelab.cli.progress import watching
    from routelab.records.csv_io import write_csv
    from routelab.records.json_io import check_writable, write_json
    from routelab.report.plots.report_plots import save_figures
    from routelab.tracking.artifacts import leave

    out = console(quiet=as_json)
    if precision not in (None, *PRECISIONS):
        raise unknown("--precision", precision, PRECISIONS)
    settings = Settings(batch_sizes, rounds=rounds, longest=longest, cpu_time=cpu_time, precision=precision)
    opened = open_run(run, uri)
    folder = Path(output) if output else opened.folder / "clock"
    check_writable(folder)
    with watching(out) as show:
        found = clock(opened, settings, lambda share: show(0, 1, share))
    found["sentences"] = sentences(found)
    places = [folder / "clock.json", folder / "clock.csv", folder / "figures"]
    write_json(places[0], found)
    write_csv(places[1], table(found))
    save_figures(figures_of(found), places[2])
    if opened.run_id is not None:
        leave(uri, opened.run_id, places, "clock")
    if as_json:
        print_json(found)
        return
    out.print(f"{opened.name}. {machine(found)}")
    out.print(_clock_table(found))
    for sentence in found["sentences"]:
        out.print(sentence)
    out.print("The dense models have their initial weights: the time of a product does not depend on its values.")
    out.print(f"Numbers: {places[0]}   Figures: {places[2]}")


def _clock_table(found: dict[str, Any]) -> Table:
    from rich.table import Table

    from routelab.analysis.latency.profiler import PARTS

    unit = "tokens/s" if found["positions"] else "examples/s"
    grid = Table(header_style="")
    for name in (
        "what",
        "batch",
        "model",
        "FLOPs/ex",
        "total",
        "ms",
        unit,
        "mixture's time over it",
        *PARTS,
    ):
        grid.add_column(name, justify="left" if name in ("what", "model") else "right", no_wrap=True)
    for row in found["rows"]:
        arm, ratio = found["arms"][row["arm"]], row["ratio"]
        over = "" if ratio is None else f"{ratio['mean']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        grid.add_row(
            row["mode"], str(row["batch"]), row["arm"], format_count(arm["flops_per_example"]), format_count(arm["total_params"]),
            f"{1e3 * row['seconds']['mean']:.3g}", format_count(row["per_second"]), over,
            *(f"{share:.0%}" if share else "" for share in row["parts"].values()),
        )  # fmt: skip
    return grid
