"""`routelab analyze`, `clock` and `serve-cost`: questions about trained mixtures, answered on the terminal and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from routelab.cli.output import console, number_of, print_json, watching
from routelab.core.errors import UsageError, unknown


def analyze(run: str, uri: str, output: str | None, examples: int | None, as_json: bool) -> None:
    """Look at one run, and leave page, numbers and figures; as artifacts too where the run was found in MLflow."""
    from routelab.analysis.routing.analysis_report import sample_line, write_analysis
    from routelab.analysis.routing.analyze import analyze, sentences
    from routelab.analysis.trained_run import open_run
    from routelab.comparison.compare import check_writable
    from routelab.tracking.artifacts import leave

    out = console(quiet=as_json)
    opened = open_run(run, uri, examples=examples)
    folder = Path(output) if output else opened.folder / "analysis"
    check_writable(folder)
    with watching(out) as show:
        found = analyze(opened, lambda share: show(0, 1, share))
    written = write_analysis(folder, opened, found)
    if opened.run_id is not None:
        leave(uri, opened.run_id, written, "analysis")
    if as_json:
        print_json({name: value for name, value in found.items() if name != "first"})
        return
    out.print(f"{opened.name}: {sample_line(found)}")
    for sentence in sentences(found):
        out.print(sentence)
    out.print(f"Page: {written[0]}")


def clock(run: str, uri: str, output: str | None, sizes: str, options: Any, as_json: bool) -> None:
    """Time one run against dense models, and leave numbers and figures; as artifacts too where the run was found in MLflow. options:
    `routelab.analysis.latency.measure.Settings` by name."""
    wanted = _whole_numbers("--sizes", sizes, "1,16,256")
    for option in ("rounds", "longest"):
        if not options[option] > 0:
            raise UsageError(f"--{option} is {options[option]}; it must be above 0")
    from routelab.analysis.latency.inference_precision import PRECISIONS
    from routelab.analysis.latency.latency_plots import figures_of, machine, table
    from routelab.analysis.latency.measure import Settings, clock
    from routelab.analysis.latency.summary_text import sentences
    from routelab.analysis.trained_run import open_run
    from routelab.comparison.compare import check_writable
    from routelab.records.csv_io import write_csv
    from routelab.records.json_io import write_json
    from routelab.report.plots.report_plots import save_figures
    from routelab.tracking.artifacts import leave

    out = console(quiet=as_json)
    if options["precision"] not in (None, *PRECISIONS):
        raise unknown("--precision", options["precision"], PRECISIONS)
    opened = open_run(run, uri)
    folder = Path(output) if output else opened.folder / "clock"
    check_writable(folder)
    with watching(out) as show:
        found = clock(opened, Settings(wanted, **options), lambda share: show(0, 1, share))
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
    out.print("The dense models have their initial weights: what a product takes does not hang on its numbers.")
    out.print(f"Numbers: {places[0]}   Figures: {places[2]}")


def _whole_numbers(option: str, text: str, example: str) -> list[int]:
    """Numbers from "1,16,256", in rising order."""
    try:
        numbers = sorted({int(word) for word in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise UsageError(f"{option} is {text!r}; it must be whole numbers of at least 1, such as {example}")
    return numbers


def _clock_table(found: dict[str, Any]) -> Table:
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
            row["mode"], str(row["batch"]), row["arm"], number_of(arm["flops_per_example"]), number_of(arm["total_params"]),
            f"{1e3 * row['seconds']['mean']:.3g}", number_of(row["per_second"]), over,
            *(f"{share:.0%}" if share else "" for share in row["parts"].values()),
        )  # fmt: skip
    return grid


def serve_cost(runs: list[str], uri: str, output: str | None, examples: int | None, options: Any, as_json: bool) -> None:
    """Serve runs from little memory, one beside the other, and leave numbers, table and figures; as artifacts of each run that was
    found in MLflow too. options: `routelab.analysis.serving.serving_options.Options` by name."""
    from routelab.analysis.serving.serving_options import Options, check_slots
    from routelab.analysis.serving.serving_report import (
        ABOUT,
        COLUMNS,
        about_rows,
        batch_rows,
        batches_of,
        sentences,
        write_serving,
    )
    from routelab.analysis.serving.simulate import serve_cost
    from routelab.analysis.trained_run import open_run
    from routelab.comparison.compare import check_writable
    from routelab.tracking.artifacts import leave

    out, slots = console(quiet=as_json), options["slots"]
    chosen = Options(**{**options, "slots": None if slots is None else _whole_numbers("--slots", slots, "1,4,8")})
    opened = [open_run(run, uri, examples=examples) for run in runs]
    check_slots(opened, chosen)
    folder = Path(output) if output else opened[0].folder / "serving" if len(opened) == 1 else Path("results") / "serving"
    check_writable(folder)
    found = []
    with watching(out) as show:
        for number, run in enumerate(opened):

            def watch(share: float, done: int = number) -> None:
                show(done, len(opened), (done + share) / len(opened))

            found.append(serve_cost(run, folder, chosen, watch))
    written = write_serving(folder, found)
    for run in opened:
        if run.run_id is not None:
            leave(uri, run.run_id, written, "serving")
    if as_json:
        print_json({"runs": found})
        return
    _table(out, "What is served", ABOUT, about_rows(found))
    for size in batches_of(found):
        _table(out, f"{size} at a time", COLUMNS, batch_rows(found, size))
    for sentence in sentences(found):
        out.print(sentence)
    out.print(f"Numbers: {written[0]}, {written[1]}; figures: {written[2]}")


def _table(out: Any, title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    grid = Table(title=title, header_style="", title_justify="left")
    for name in columns:
        grid.add_column(name, justify="left" if name in ("run", "served", "read at once") else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    out.print(grid)
