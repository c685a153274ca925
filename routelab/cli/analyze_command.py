"""`routelab analyze`: the experts of one trained run, as page, numbers and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from routelab.cli.arguments import DEFAULT_TRACKING_URI, ExamplesOption, JsonOption, RunArg, TrackingUriOption


def analyze_command(
    run: RunArg,
    uri: TrackingUriOption = DEFAULT_TRACKING_URI,
    output: Annotated[str | None, typer.Option(help="Where the page goes (RUN's folder, in analysis/).")] = None,
    examples: ExamplesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Analyze the experts of a routed run: specialisation by domain, class and byte; paths; the loss without each expert.

    Example: routelab analyze results/language/topk-s0
    """
    from routelab.analysis.routing.analysis_report import sample_line, write_analysis
    from routelab.analysis.routing.analyze import analyze, sentences
    from routelab.analysis.trained_run import open_run
    from routelab.cli.output import console, print_json
    from routelab.cli.progress import watching
    from routelab.records.json_io import check_writable
    from routelab.tracking.artifacts import leave

    out = console(quiet=as_json)
    opened = open_run(run, uri, examples=examples)
    folder = Path(output) if output else opened.folder / "analysis"
    check_writable(folder)
    with watching(out) as show:
        found = analyze(opened, lambda share: show(0, 1, share))
    written = write_analysis(folder, opened, found)
    if opened.run_id is not None:
        # A run that was looked up in MLflow gets the files as artifacts too.
        leave(uri, opened.run_id, written, "analysis")
    if as_json:
        print_json({name: value for name, value in found.items() if name != "first"})
        return
    out.print(f"{opened.name}: {sample_line(found)}")
    for sentence in sentences(found):
        out.print(sentence)
    out.print(f"Page: {written[0]}")
