"""`routelab distil`: a student of a recorded run, and the same model trained on the data alone."""

from __future__ import annotations

from typing import Annotated

import typer

from routelab.cli.arguments import JsonOption, PrintConfigOption, absolute_plugins, require_settings


def distil_command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="The teacher: a run's folder, cell or MLflow id; {seed} is the student's seed.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="into, temperature, weight, or what `compare` takes.")
    ] = None,
    as_json: JsonOption = False,
    print_config: PrintConfigOption = False,
) -> None:
    """Train a small model on a run's outputs, and on the data alone at the same training FLOPs: does a mixture teach?

    Example: routelab distil results/language/topk-s0 into=dense seeds=6 temperature=2
    """
    from routelab.cli.compare_command import compare_and_exit
    from routelab.cli.output import show_config
    from routelab.comparison.distillation import distillation

    require_settings(overrides or [], "RUN")
    resolved = distillation(run, overrides or [], absolute_plugins())
    if print_config:
        return show_config(resolved, as_json)
    compare_and_exit(resolved, as_json)
