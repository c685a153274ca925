"""`routelab replay`: a recorded run, trained again."""

from __future__ import annotations

import typer

from routelab.cli.arguments import DEFAULT_TRACKING_URI, JsonOption, RunArg, TrackingUriOption


def replay_command(run: RunArg, uri: TrackingUriOption = DEFAULT_TRACKING_URI, as_json: JsonOption = False) -> None:
    """Train a recorded run again, and compare its losses bit for bit.

    Example: routelab replay results/cells/0123456789abcdef0123
    """
    raise typer.Exit(replay(run, uri, as_json))


def replay(run: str, uri: str, as_json: bool) -> int:
    """Train a recorded run again; exit code 1 if a number differs."""
    from routelab.cli.output import console, print_differences, print_json
    from routelab.cli.progress import watching
    from routelab.comparison.replay import replay
    from routelab.records.run_lookup import find_record
    from routelab.tracking.artifacts import store_at

    before, out = find_record(run, store_at(uri)), console(quiet=as_json)
    if before["status"] == "ok":
        out.print(f"{before['arm']} on {before['data']}, seed {before['seed']}: {before['steps']} steps, recorded by "
                  f"`{(before.get('provenance') or {}).get('command')}`")  # fmt: skip
    with watching(out) as show:
        done = replay(before, lambda share: show(0, 1, share))
    if as_json:
        print_json(
            {"equal": done.difference is None, "points": done.points, "difference": done.difference, "changed": done.changed}
        )
    elif done.difference is None:
        out.print(f"equal to the last bit: all losses at {done.points} points of the curve, on validation and on test")
    else:
        where, old, new = done.difference
        out.print(f"differs first in {where}: {old!r} then, {new!r} now")
    print_differences(out, "not as it was then", done.changed)
    return 0 if done.difference is None else 1
