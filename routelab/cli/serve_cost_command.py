"""`routelab serve-cost`: trained runs served from less memory than their experts need, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from routelab.cli.arguments import DEFAULT_TRACKING_URI, ExamplesOption, JsonOption, TrackingUriOption, parse_counts


def serve_cost_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs' folders, cells' addresses, or ids in MLflow.")],
    slots: Annotated[str | None, typer.Option(help="Experts in memory, such as 1,4,8 (from one to all).")] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="So many for each layer, not for all together.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Drop the kernel's copies of experts before each read (Linux).")] = False,
    prompt: Annotated[int | None, typer.Option(help="Positions before the first that is decoded (half of them).")] = None,
    steps: Annotated[int, typer.Option(help="Steps that are timed for each setting; 0 times nothing.")] = 64,
    uri: TrackingUriOption = DEFAULT_TRACKING_URI,
    output: Annotated[str | None, typer.Option(help="Where it goes (RUN's folder, in serving/; results/serving).")] = None,
    examples: ExamplesOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a mixture costs when not all experts fit in memory: bytes read per token, hit rate and latency.

    Example: routelab serve-cost results/language/hash-s0 results/language/topk-s0
    """
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
    from routelab.cli.output import console, print_json
    from routelab.cli.progress import watching
    from routelab.records.json_io import check_writable
    from routelab.tracking.artifacts import leave

    out = console(quiet=as_json)
    chosen = Options(
        slots=None if slots is None else parse_counts("--slots", slots, "1,4,8"),
        per_layer=per_layer,
        cold=cold,
        prompt=prompt,
        steps=steps,
    )
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
    from rich.table import Table

    grid = Table(title=title, header_style="", title_justify="left")
    for name in columns:
        grid.add_column(name, justify="left" if name in ("run", "served", "read at once") else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    out.print(grid)
