"""`routelab sweep`: tune arms, look at what there is, and go on with it. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routelab.core.errors import UsageError, unknown

if TYPE_CHECKING:
    from rich.table import Table

sweep = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="Tune each arm with the same budget, by any number of workers that may die (docs/sweeps.md).\n\n"
    "Example: routelab sweep run data=digits 'arms=[dense,switch]' trials=20",
)  # fmt: skip

Study = Annotated[str, typer.Argument(metavar="STUDY", help="The sweep's name, or the folder that it writes to.")]
More = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="storage=URL, workers=N, as in a configuration.")
]
Storage = Annotated[str | None, typer.Option(help="Where it lies; without it, where `sweep run` on this machine said.")]
Workers = Annotated[int | None, typer.Option(help="Processes on this machine; as configured without it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
TuneOnly = Annotated[bool, typer.Option("--tune-only", help="Leave out the comparison of the best settings on fresh seeds.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file, then key=value words.")
]


@sweep.command(name="run")
def run_command(words: Words = None, tune_only: TuneOnly = False, as_json: AsJson = False) -> None:
    """Tune every arm, then train the best settings on fresh seeds and compare them on test. Called again, it goes on.

    Example: routelab sweep run data=digits 'arms=[dense,switch]' trials=20 study=first
    """
    from routelab.cli.app import resolve_words
    from routelab.sweeps.runner import run_sweep

    resolved = resolve_words(words)
    with _table(as_json) as (show, show_comparison):
        done = run_sweep(resolved, watch=show, watch_comparison=show_comparison, compare=not tune_only)
    raise typer.Exit(_close(done, as_json))


@sweep.command(name="resume")
def resume_command(
    study: Study,
    more: More = None,
    storage: Storage = None,
    workers: Workers = None,
    tune_only: TuneOnly = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a sweep as it was configured: what was interrupted continues from its checkpoints.

    Example: routelab sweep resume first
    """
    from routelab.sweeps.runner import resume
    from routelab.sweeps.studies import find

    given = _options(more, storage, workers)
    studies = find(study, given["storage"])
    with _table(as_json) as (show, show_comparison):
        done = resume(studies, workers=given["workers"], watch=show, watch_comparison=show_comparison, compare=not tune_only)
    raise typer.Exit(_close(done, as_json))


@sweep.command(name="worker")
def worker_command(
    study: Study, more: More = None, storage: Storage = None, workers: Workers = None, as_json: AsJson = False
) -> None:
    """Help with a sweep, on this or any other machine, until every arm has its trials. It compares nothing.

    Example: routelab sweep worker first --storage postgresql://me@db/sweeps --workers 4
    """
    from routelab.sweeps.runner import resume
    from routelab.sweeps.studies import find

    given = _options(more, storage, workers)
    studies = find(study, given["storage"])
    with _table(as_json) as (show, _):
        done = resume(studies, workers=given["workers"], watch=show, compare=False)
    raise typer.Exit(_close(done, as_json))


@sweep.command(name="status")
def status_command(study: Study, more: More = None, storage: Storage = None, as_json: AsJson = False) -> None:
    """Trials by state, the best of each arm, and how much of the budget is spent.

    Example: routelab sweep status first --json
    """
    from routelab.cli.output import console, print_json

    status = _find(study, more, storage).status()
    if as_json:
        print_json(status)
    else:
        console().print(_rows(status))


@sweep.command(name="best")
def best_command(study: Study, more: More = None, storage: Storage = None, as_json: AsJson = False) -> None:
    """The best settings of each arm; with several objectives, its front.

    Example: routelab sweep best first
    """
    from routelab.cli.output import print_json
    from routelab.sweeps.study_status import plain_best

    studies = _find(study, more, storage)
    best = plain_best(studies)
    if as_json:
        print_json(best)
        return
    for label, found in best.items():
        for row in found["front"]:
            values = ", ".join(f"{name} {row[name]:.5g}" for name in studies.objectives)
            settings = " ".join(f"{key}={_short(value)}" for key, value in row["settings"].items())
            typer.echo(f"{label}: trial {row['trial']}, {values}: {settings}")
        if not found["front"]:
            typer.echo(f"{label}: no complete trial yet")


@sweep.command(name="importance")
def importance_command(study: Study, more: More = None, storage: Storage = None, as_json: AsJson = False) -> None:
    """How much each setting mattered for the loss (Optuna's PED-ANOVA).

    Example: routelab sweep importance first
    """
    from routelab.cli.output import print_json
    from routelab.sweeps.study_export import importance

    found = importance(_find(study, more, storage))
    if as_json:
        print_json(found)
        return
    for label, parts in found.items():
        text = ", ".join(f"{key} {value:.2f}" for key, value in parts.items())
        typer.echo(f"{label}: {text or 'too few complete trials to say'}")


@sweep.command(name="export")
def export_command(
    study: Study,
    more: More = None,
    storage: Storage = None,
    into: Annotated[str | None, typer.Option(help="The folder to write into; the sweep's own without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write every trial as a row of trials.csv, and the best settings as best.yaml, which `routelab compare` takes.

    Example: routelab sweep export first --into shared/
    """
    from routelab.cli.output import print_json
    from routelab.comparison.compare import check_writable
    from routelab.sweeps.study_export import export, rows

    studies = _find(study, more, storage)
    folder = Path(into or studies.config["output"])
    check_writable(folder)
    paths = export(studies, folder)
    if as_json:
        print_json(rows(studies))
    else:
        for path in paths:
            typer.echo(f"Wrote {path}")


def _find(study: str, more: list[str] | None, storage: str | None) -> Any:
    from routelab.sweeps.studies import find

    return find(study, _options(more, storage, None)["storage"])


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


Shows = tuple[Callable[[dict[str, Any]], None], Callable[[int, int, float], None]]
"""Shown the status of the tuning, and the progress of the comparison that follows."""


@contextlib.contextmanager
def _table(quiet: bool) -> Iterator[Shows]:
    """One live table on a terminal; elsewhere a line every ten seconds, and less often the longer it takes."""
    from routelab.cli.output import console

    out = console(quiet)
    began = time.monotonic()
    seen: dict[str, Any] = {"said": began}

    def left(status: dict[str, Any]) -> str:
        seen.setdefault("share", _share(status))
        seen["status"] = status
        return _left(status, seen["share"], time.monotonic() - began)

    def comparing(done: int, total: int, share: float) -> str:
        return f", comparing the best settings on fresh seeds: {done}/{total} runs, {share:.0%} of the work"

    if out.is_terminal and not out.quiet:
        from rich.live import Live

        with Live(console=out, refresh_per_second=2) as live:
            yield (
                lambda status: live.update(_rows(status, left(status))),
                lambda *progress: live.update(_rows(seen["status"], comparing(*progress))),
            )
        return

    def say(line: str) -> None:
        now = time.monotonic()
        if now - seen["said"] > max(10.0, (now - began) / 20):
            seen["said"] = now
            out.print(line)

    yield (
        lambda status: say(f"{_headline(status)}{left(status)}"),
        lambda *progress: say(f"{_headline(seen['status'])}{comparing(*progress)}"),
    )


def _share(status: Mapping[str, Any]) -> float:
    """How much of the budgets of all arms is spent, 0 to 1."""
    parts = []
    for arm in status["arms"].values():
        of = arm["target"] or arm["flops_budget"]
        parts.append(min(1.0, (arm["states"].get("COMPLETE", 0) if arm["target"] else arm["flops"]) / of))
    return 1.0 if status["done"] else sum(parts) / len(parts)


def _left(status: Mapping[str, Any], before: float, seconds: float) -> str:
    gained = _share(status) - before
    if gained <= 0 or status["done"]:
        return ""
    rest = seconds * (1 - _share(status)) / gained
    return f", about {rest / 60:.0f} min left" if rest > 90 else f", about {rest:.0f} s left"


def _headline(status: Mapping[str, Any]) -> str:
    states = ", ".join(f"{count} {name.lower()}" for name, count in status["states"].items())
    lost = f" ({status['lost']} without a worker)" if status["lost"] else ""
    return f"{status['study']}: {_share(status):.0%} done, trials {states or 'none yet'}{lost}"


def _rows(status: Mapping[str, Any], left: str = "") -> Table:
    from rich.table import Table

    from routelab.cli.output import number_of

    table = Table(title=_headline(status) + left, header_style="")
    for name in ("arm", "complete", "running", "waiting", "pruned", "failed", *(f"best {each}" for each in status["objectives"]),
                 "of trial", "FLOPs spent"):  # fmt: skip
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for label, arm in status["arms"].items():
        states, best = arm["states"], arm["best"]
        done = f"{states.get('COMPLETE', 0)}" + (f"/{arm['target']}" if arm["target"] else "")
        values = [f"{value:.5g}" for value in best["values"]] if best else ["-"] * len(status["objectives"])
        spent = number_of(arm["flops"]) + (f"/{number_of(arm['flops_budget'])}" if arm["flops_budget"] else "")
        others = [str(states.get(state, 0)) for state in ("RUNNING", "WAITING", "PRUNED", "FAIL")]
        mark = " (given up)" if arm["given_up"] else ""
        table.add_row(label + mark, done, *others, *values, str(best["trial"]) if best else "-", spent)
    return table


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _close(done: Any, as_json: bool) -> int:
    """Say what was found; the exit code."""
    from routelab.cli.output import console, print_json, table

    failed = any(arm["given_up"] for arm in done.status["arms"].values()) or (done.comparison and done.comparison.failed)
    if as_json:
        found = {**done.status, "comparison": done.comparison and done.comparison.summary, "problems": done.problems}
        print_json(found)
        return 1 if failed else 0
    out = console()
    out.print(_rows(done.status))
    for label, arm in done.status["arms"].items():
        if arm["best"]:
            out.print(f"  {label}: " + " ".join(f"{key}={_short(value)}" for key, value in arm["best"]["params"].items()))
    for problem in done.problems:
        out.print(f"problem: {problem}")
    if done.comparison:
        out.print("The best settings of each arm, trained on fresh seeds and read once on test:")
        out.print(table(done.comparison.summary))
        out.print(done.comparison.summary["sentence"])
        out.print(f"Report: {done.output / 'report.html'}   Table: {done.output / 'results.csv'}")
    return 1 if failed else 0
