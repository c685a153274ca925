"""What a sweep costs beside its trials: python -m benchmarks.sweeps [storages] [share] [workers]

storages: trials a second that a storage takes, with trials that cost nothing. share: sampling, storage and MLflow, and their
sum for each storage, as shares of trials of five seconds. workers: trials a second of two workers over one, with real trials of
equal work, about five seconds each for one worker alone. A PostgreSQL is started if pgserver is installed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from optuna.trial import TrialState

from routelab.config.resolve import resolve
from routelab.sweeps import worker
from routelab.sweeps.liveness import Heart, worker_id
from routelab.sweeps.mlflow_sync import Mirror
from routelab.sweeps.runner import run_sweep
from routelab.sweeps.studies import Studies, find
from routelab.sweeps.sweep import Sweep
from routelab.sweeps.trial import Outcome
from routelab.sweeps.worker import claim, tell

TRIALS, SECONDS, RUNGS = 40, 5.0, 5


def storages(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and URLs."""
    yield "journal", str(folder / "study.journal")
    yield "sqlite", f"sqlite:///{folder / 'study.db'}"
    with contextlib.suppress(ImportError):
        import pgserver

        server = pgserver.get_server(folder / "postgres", cleanup_mode="stop")
        yield "postgresql", server.get_uri()
        server.cleanup()


def sweep_of(folder: Path, url: str, *more: str) -> tuple[Sweep, Studies]:
    sweep = Sweep(
        resolve(
            [
                "arms=[switch]", "backbone.d_model=16", "backbone.depth=1", "backbone.heads=2", "match.on=none", f"trials={TRIALS}",
                "tracking.uri=null", f"storage={url}", f"output={folder / 'out'}", "study=bench", *more,
            ]
        )
    )  # fmt: skip
    return sweep, sweep.open()


def per_trial(folder: Path, url: str, reports: int) -> float:
    """Median seconds of claiming, sampling, reporting at rungs and telling, over TRIALS trials."""
    sweep, studies = sweep_of(folder, url, "pruner=median" if reports else "pruner=none", f"trainer.checks={RUNGS}")
    me, heart, took = worker_id(), Heart(studies.store, worker_id()), []
    for number in range(TRIALS):
        began = time.perf_counter()
        taken = claim(sweep, studies, me, heart)
        assert taken is not None
        for rung in range(1, reports + 1):
            taken.trial.report(1.0 / rung, rung)
            taken.trial.should_prune()
        tell(studies, taken, Outcome(TrialState.COMPLETE, [1.0 + number], spent={"flops": 1.0}), me)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def costs() -> Iterator[tuple[str, int, float]]:
    """Storage, reports a trial, and seconds a trial."""
    for reports in (0, RUNGS):
        with tempfile.TemporaryDirectory() as place:
            for name, url in storages(Path(place)):
                yield name, reports, per_trial(Path(place) / name, url, reports)


def show_storages() -> None:
    for name, reports, seconds in costs():
        print(f"{name}, {reports} reports a trial: {1 / seconds:.1f} trials/s, {seconds / SECONDS:.2%} of {SECONDS:.0f} s")


def show_share() -> None:
    """Sampling and storage are waited for by the worker; MLflow is the CPU time of the process that copies, in parallel."""
    with tempfile.TemporaryDirectory() as place:
        mlflow = mlflow_per_trial(Path(place)) / SECONDS
    for name, reports, seconds in costs():
        kept = seconds / SECONDS
        print(
            f"{name}, {reports} reports a trial: sampling and storage {kept:.2%} + MLflow on sqlite {mlflow:.2%} = "
            f"{kept + mlflow:.2%} of a trial of {SECONDS:.0f} s"
        )


def mlflow_per_trial(folder: Path) -> float:
    """Seconds of CPU that the copying process spends on a trial, by the side of real, short trials."""
    sweep, studies = sweep_of(
        folder, str(folder / "study.journal"), f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", "trials=12", "budget.steps=15"
    )
    worker.work(sweep, studies)
    mirror = Mirror(sweep, studies)
    # The first look opens the store and begins the study; MLflow's migrations are paid once.
    mirror.look()
    more, studies = sweep_of(
        folder, str(folder / "study.journal"), f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", "trials=24", "budget.steps=15"
    )
    worker.work(more, studies)
    began = time.process_time()
    mirror.look(now=True)
    if mirror.problem:
        raise RuntimeError(mirror.problem)
    return (time.process_time() - began) / 12


EQUAL = ["arms=[switch]", "match.on=none", "search.experts.count=8", "search.router.capacity_factor=1.25", "study=bench"]
"""Nothing is searched that changes what a trial costs."""


def steps_in(seconds: float, place: str) -> int:
    """Optimizer steps that one worker alone takes in so many seconds."""
    done = run_sweep(
        [*EQUAL, f"budget.seconds={seconds}", "trials=1", "workers=1", f"output={place}/results/alone", "tracking.uri=null"],
        compare=False,
    )
    (trial,) = find(str(done.output), None).arms[0].trials(TrialState.COMPLETE)
    return int(trial.user_attrs["spent"]["steps"])


def cpu_of(who: int) -> float:
    """Seconds of CPU, of this process or of its children that have ended."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def rate(workers: int, steps: int, trials: int) -> float:
    """Trials a second from the first claim to the last end, MLflow's copy included."""
    with tempfile.TemporaryDirectory() as place:
        words = [
            *EQUAL, f"budget.steps={steps}", f"trials={trials}", f"workers={workers}", f"output={place}/results/w{workers}",
            f"tracking.uri=sqlite:///{place}/mlflow.db",
        ]  # fmt: skip
        before = [cpu_of(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
        done = run_sweep(words, compare=False)
        theirs, ours = (
            cpu_of(who) - was for who, was in zip((resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF), before, strict=True)
        )
        found = find(str(done.output), None).arms[0].trials(TrialState.COMPLETE)
        begins = [trial.datetime_start for trial in found if trial.datetime_start]
        ends = [trial.datetime_complete for trial in found if trial.datetime_complete]
        each = statistics.median(trial.user_attrs["spent"]["seconds"] for trial in found)
        found_rate = len(found) / (max(ends) - min(begins)).total_seconds()
        print(
            f"{workers} at work: {len(found)} trials of {steps} steps, {each:.2f} s each (median), {found_rate:.3f} trials/s; "
            f"CPU a trial: {theirs / len(found):.2f} s of workers with their starts, {ours / len(found):.2f} s of MLflow and watching"
        )
        return found_rate


def show_workers() -> None:
    """Real trials of equal work in one process, in two, in one again and in two again, since machines drift."""
    with tempfile.TemporaryDirectory() as place:
        steps = steps_in(SECONDS, place)
    print(f"one worker alone takes {steps} steps in {SECONDS:.0f} s; load of the machine {os.getloadavg()[0]:.1f}")
    rates = [(rate(1, steps, 6), rate(2, steps, 12)) for _ in range(2)]
    print("2 workers over 1: " + ", ".join(f"{two / one:.2f}" for one, two in rates))


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["storages", "share", "workers"]
    for what in wanted:
        {"storages": show_storages, "share": show_share, "workers": show_workers}[what]()
