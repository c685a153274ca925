"""`routelab explain`: two recorded runs side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from routelab.cli.arguments import DEFAULT_TRACKING_URI, RUN_HELP, JsonOption, TrackingUriOption


def explain_command(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help=RUN_HELP)],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Likewise.")],
    uri: TrackingUriOption = DEFAULT_TRACKING_URI,
    as_json: JsonOption = False,
) -> None:
    """Say what differs between two recorded runs: settings, code and versions, results.

    Example: routelab explain results/digits/switch-s0 results/digits/switch-s1
    """
    from routelab.cli.output import console, print_differences, print_json
    from routelab.comparison.replay import explain
    from routelab.records.run_lookup import find_record
    from routelab.tracking.artifacts import store_at

    records, out = [find_record(run, store_at(uri)) for run in (first, second)], console(quiet=as_json)
    differences = explain(*records)
    if as_json:
        print_json(differences)
        return
    if not any(differences.values()):
        out.print("the two records are equal")
    for part, differing in differences.items():
        print_differences(out, part, differing)
