"""`routelab analyze`: the questions about a mixture's experts, answered on the terminal and on a page."""

from __future__ import annotations

import json
from pathlib import Path

from routelab.cli.screen import console, watching


def analyze(run: str, uri: str, output: str | None, examples: int | None, as_json: bool) -> None:
    """Look at one run, and leave page, numbers and figures; as artifacts too where the run was found in MLflow."""
    from routelab.analysis.analyze import analyze, sentences
    from routelab.analysis.report import sample_line, write_analysis
    from routelab.analysis.runs import open_run
    from routelab.comparison.compare import check_writable
    from routelab.training.record import plain
    from routelab.training.stored import leave

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
        print(json.dumps(plain({name: value for name, value in found.items() if name != "first"})))
        return
    out.print(f"{opened.name}: {sample_line(found)}")
    for sentence in sentences(found):
        out.print(sentence)
    out.print(f"Page: {written[0]}")
