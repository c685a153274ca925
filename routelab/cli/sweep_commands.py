"""`routelab sweep`: tuning of arms, its state, and its best settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from routelab.cli.arguments import JsonOption, OverridesArg, resolve_overrides
from routelab.core.errors import UsageError, unknown
from routelab.core.number_format import format_setting

sweep = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="Tune each arm with the same budget, by any number of workers that may die (docs/sweeps.md).\n\n"
    "Example: routelab sweep run data=digits 'arms=[dense,switch]' trials=20",
)  # fmt: skip

StudyArg = Annotated[str, typer.Argument(metavar="STUDY", help="The sweep's name, or the folder that it writes to.")]
ExtraArgs = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="storage=URL, workers=N, as in a configuration.")
]
StorageOption = Annotated[str | None, typer.Option(help="Where it lies; without it, where `sweep run` on this machine said.")]
WorkersOption = Annotated[int | None, typer.Option(help="Processes on this machine; as configured without it.")]
TuneOnlyOption = Annotated[
    bool, typer.Option("--tune-only", help="Leave out the comparison of the best settings on fresh seeds.")
]


@sweep.command(name="run")
def run_command(overrides: OverridesArg = None, tune_only: TuneOnlyOption = False, as_json: JsonOption = False) -> None:
    """Tune every arm, then train the best settings on fresh seeds and compare them on test. Called again, it goes on.

    Example: routelab sweep run data=digits 'arms=[dense,switch]' trials=20 study=first
    """
    from routelab.cli.sweep_progress import watching_sweep
    from routelab.sweeps.runner import run_sweep

    resolved = resolve_overrides(overrides)
    with watching_sweep(as_json) as (show, show_comparison):
        done = run_sweep(resolved, watch=show, watch_comparison=show_comparison, compare=not tune_only)
    raise typer.Exit(_close(done, as_json))


@sweep.command(name="resume")
def resume_command(
    study: StudyArg,
    extra: ExtraArgs = None,
    storage: StorageOption = None,
    workers: WorkersOption = None,
    tune_only: TuneOnlyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a sweep as it was configured: what was interrupted continues from its checkpoints.

    Example: routelab sweep resume first
    """
    from routelab.cli.sweep_progress import watching_sweep
    from routelab.sweeps.runner import resume
    from routelab.sweeps.studies import find

    given = _options(extra, storage, workers)
    studies = find(study, given["storage"])
    with watching_sweep(as_json) as (show, show_comparison):
        done = resume(studies, workers=given["workers"], watch=show, watch_comparison=show_comparison, compare=not tune_only)
    raise typer.Exit(_close(done, as_json))


@sweep.command(name="worker")
def worker_command(
    study: StudyArg,
    extra: ExtraArgs = None,
    storage: StorageOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Help with a sweep, on this or any other machine, until every arm has its trials. It compares nothing.

    Example: routelab sweep worker first --storage postgresql://me@db/sweeps --workers 4
    """
    from routelab.cli.sweep_progress import watching_sweep
    from routelab.sweeps.runner import resume
    from routelab.sweeps.studies import find

    given = _options(extra, storage, workers)
    studies = find(study, given["storage"])
    with watching_sweep(as_json) as (show, _):
        done = resume(studies, workers=given["workers"], watch=show, compare=False)
    raise typer.Exit(_close(done, as_json))


@sweep.command(name="status")
def status_command(
    study: StudyArg, extra: ExtraArgs = None, storage: StorageOption = None, as_json: JsonOption = False
) -> None:
    """Trials by state, the best of each arm, and how much of the budget is spent.

    Example: routelab sweep status first --json
    """
    from routelab.cli.output import console, print_json
    from routelab.cli.sweep_progress import status_table

    status = _find(study, extra, storage).status()
    if as_json:
        print_json(status)
    else:
        console().print(status_table(status))


@sweep.command(name="best")
def best_command(study: StudyArg, extra: ExtraArgs = None, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """The best settings of each arm; with several objectives, its front.

    Example: routelab sweep best first
    """
    from routelab.cli.output import print_json
    from routelab.sweeps.study_status import plain_best

    studies = _find(study, extra, storage)
    best = plain_best(studies)
    if as_json:
        print_json(best)
        return
    for label, found in best.items():
        for row in found["front"]:
            values = ", ".join(f"{name} {row[name]:.5g}" for name in studies.objectives)
            settings = " ".join(f"{key}={format_setting(value)}" for key, value in row["settings"].items())
            typer.echo(f"{label}: trial {row['trial']}, {values}: {settings}")
        if not found["front"]:
            typer.echo(f"{label}: no complete trial yet")


@sweep.command(name="importance")
def importance_command(
    study: StudyArg, extra: ExtraArgs = None, storage: StorageOption = None, as_json: JsonOption = False
) -> None:
    """How much each setting mattered for the loss (Optuna's PED-ANOVA).

    Example: routelab sweep importance first
    """
    from routelab.cli.output import print_json
    from routelab.sweeps.study_export import importance

    found = importance(_find(study, extra, storage))
    if as_json:
        print_json(found)
        return
    for label, parts in found.items():
        text = ", ".join(f"{key} {value:.2f}" for key, value in parts.items())
        typer.echo(f"{label}: {text or 'too few complete trials to say'}")


@sweep.command(name="export")
def export_command(
    study: StudyArg,
    extra: ExtraArgs = None,
    storage: StorageOption = None,
    into: Annotated[str | None, typer.Option(help="The folder to write into; the sweep's own without it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write every trial as a row of trials.csv, and the best settings as best.yaml, which `routelab compare` takes.

    Example: routelab sweep export first --into shared/
    """
    from routelab.cli.output import print_json
    from routelab.records.json_io import check_writable
    from routelab.sweeps.study_export import export, rows

    studies = _find(study, extra, storage)
    folder = Path(into or studies.config["output"])
    check_writable(folder)
    paths = export(studies, folder)
    if as_json:
        print_json(rows(studies))
    else:
        for path in paths:
            typer.echo(f"Wrote {path}")


def _find(study: str, extra: list[str] | None, storage: str | None) -> Any:
    from routelab.sweeps.studies import find

    return find(study, _options(extra, storage, None)["storage"])


def _options(words: list[str] | None, storage: str | None, workers: int | None) -> dict[str, Any]:
    """`storage=URL` and `workers=N` may be written as in a configuration, too."""
    given: dict[str, Any] = {"storage": storage, "workers": workers}
    for word in words or []:
        key, _, value = word.partition("=")
        if key not in given:
            raise unknown("key", key, given)
        given[key] = value
    if given["workers"] is not None:
        try:
            count = int(given["workers"])
        except ValueError:
            count = 0
        if count < 1:
            raise UsageError(f"workers={given['workers']} must be a whole number of at least 1")
        given["workers"] = count
    return given


def _close(done: Any, as_json: bool) -> int:
    """Say what was found; the exit code."""
    from routelab.cli.output import console, print_json, print_table
    from routelab.cli.sweep_progress import status_table

    failed = any(arm["given_up"] for arm in done.status["arms"].values()) or (done.comparison and done.comparison.failed)
    if as_json:
        found = {**done.status, "comparison": done.comparison and done.comparison.summary, "problems": done.problems}
        print_json(found)
        return 1 if failed else 0
    out = console()
    out.print(status_table(done.status))
    for label, arm in done.status["arms"].items():
        if arm["best"]:
            out.print(
                f"  {label}: " + " ".join(f"{key}={format_setting(value)}" for key, value in arm["best"]["params"].items())
            )
    for problem in done.problems:
        out.print(f"problem: {problem}")
    if done.comparison:
        out.print("The best settings of each arm, trained on fresh seeds and read once on test:")
        print_table(out, done.comparison.summary)
        out.print(done.comparison.summary["sentence"])
        out.print(f"Report: {done.output / 'report.html'}   Table: {done.output / 'results.csv'}")
    return 1 if failed else 0
