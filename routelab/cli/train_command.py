"""`routelab train`: one arm, one seed."""

from __future__ import annotations

from typing import Any

import typer

from routelab.cli.arguments import JsonOption, OverridesArg, PrintConfigOption, resolve_overrides
from routelab.core.number_format import format_count


def train_command(overrides: OverridesArg = None, as_json: JsonOption = False, print_config: PrintConfigOption = False) -> None:
    """Train one arm with one seed.

    Example: routelab train arm=top2 data=digits seed=1 budget.steps=500
    """
    from routelab.cli.output import print_json, show_config

    resolved = resolve_overrides(overrides, "train")
    if print_config:
        return show_config(resolved, as_json)
    run = train(resolved, quiet=as_json)
    if as_json:
        print_json({key: value for key, value in run.record.items() if key not in ("curve", "load")})
    raise typer.Exit(0 if run.record["status"] == "ok" else 1)


def train(resolved: Any, quiet: bool = False) -> Any:
    """Train one run and print its result."""
    from routelab.cli.output import console
    from routelab.cli.progress import watching

    out = console(quiet)
    from routelab.comparison.train_one import train as run_one

    with watching(out) as show:
        run = run_one(resolved, watch=lambda share: show(0, 1, share))
    record = run.record
    if record["status"] != "ok":
        out.print(f"FAILED {record['arm']} seed {record['seed']}: {record['error']}")
        return run
    quality = ", ".join(f"test {name} {value:.4f}" for name, value in record["test"].items())
    from routelab.report.arm_labels import marked, marks

    out.print(f"{marked(record['arm'], marks(record))} on {record['data']}, seed {record['seed']}: {quality}")
    out.print(
        f"{record['steps']} steps, {format_count(record['flops_model'])} FLOPs model, {format_count(record['flops_executed'])} executed, "
        f"{format_count(record['flops_per_example'])} per example, {format_count(record['active_params'])} active of "
        f"{format_count(record['total_params'])} parameters, {record['seconds']:.1f} s"
    )
    if record["resumed_at"] is not None:
        out.print(f"This run was interrupted, and went on from step {record['resumed_at']}")
    for problem in record["problems"]:
        out.print(f"problem: {problem}")
    out.print(f"Record and weights: {record['folder']}")
    return run
