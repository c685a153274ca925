"""From a configuration to finished studies and the comparison of what they found."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from routelab.comparison.compare import Comparison
from routelab.comparison.execute import default_workers, gpus
from routelab.comparison.prepared_comparison import Watch as WatchComparison
from routelab.config.resolve import Resolved, resolve
from routelab.sweeps.final_comparison import compare_best
from routelab.sweeps.mlflow_sync import Mirror
from routelab.sweeps.storage import Database, patiently
from routelab.sweeps.studies import Studies
from routelab.sweeps.sweep import Sweep, open_sweep
from routelab.sweeps.worker_pool import WorkerPool

_LOOK_SECONDS = {True: 2.0, False: 0.5}
"""Between two looks at the studies, in a database and in a file: a look is some queries."""

Watch = Callable[[dict[str, Any]], None]
"""Shown the status of the sweep, again and again."""


@dataclass(frozen=True)
class SweepResult:
    """What `run_sweep` returns. comparison: of the best settings on fresh seeds; None if it was not asked for, or had no arm."""

    name: str
    output: Path
    status: dict[str, Any]
    comparison: Comparison | None
    problems: list[str]


def run_sweep(
    config: str | Path | Mapping[str, Any] | Sequence[str] | Resolved = (),
    *,
    watch: Watch = lambda status: None,
    watch_comparison: WatchComparison = lambda done, total, share: None,
    compare: bool = True,
) -> SweepResult:
    """Tune every arm of a configuration, or go on where an earlier call stopped, and compare the best settings.

    config: a path, a dict, or a list of `key=value`. Raises UsageError before any work if something is wrong with it.
    """
    resolved = config if isinstance(config, Resolved) else resolve(config)
    sweep = Sweep(resolved)
    return carry_on(sweep, sweep.open(), watch, watch_comparison, compare=compare)


def resume(
    studies: Studies,
    *,
    workers: int | None = None,
    watch: Watch = lambda status: None,
    watch_comparison: WatchComparison = lambda done, total, share: None,
    compare: bool = True,
) -> SweepResult:
    """Go on with a sweep that is there. workers: other than configured. UsageError if code or data differ here."""
    sweep = open_sweep(studies)
    if workers is not None:
        sweep.config.workers = workers
    return carry_on(sweep, studies, watch, watch_comparison, compare=compare)


def carry_on(sweep: Sweep, studies: Studies, watch: Watch, watch_comparison: WatchComparison, *, compare: bool) -> SweepResult:
    """Work until every arm has its trials; then the comparison, if it is wanted."""
    mirror = Mirror(sweep, studies)
    status = tune(sweep, studies, watch, mirror)
    comparison = None
    if compare and status["done"] and any(arm["best"] for arm in status["arms"].values()):
        comparison = compare_best(sweep, studies, watch_comparison)
    problems = [f"{label}: given up after {arm['states'].get('FAIL', 0)} failed trials: {_last_error(studies, label)}"
                for label, arm in status["arms"].items() if arm["given_up"]]  # fmt: skip
    if mirror.problem:
        problems.append(f"{mirror.problem}; nothing is lost: `routelab sweep resume {sweep.name}` sends what is missing")
    return SweepResult(sweep.name, sweep.output, status, comparison, [*problems, *(comparison.problems if comparison else ())])


def tune(sweep: Sweep, studies: Studies, watch: Watch, mirror: Mirror) -> dict[str, Any]:
    """The workers of this machine, until nothing is left to do; returns the status then."""
    config = sweep.config
    pool = WorkerPool(
        sweep.name,
        sweep.url,
        config.workers or default_workers(config.trainer),
        gpus(config.trainer) if config.trainer.devices == 1 else 0,
    )
    with studies.store.claiming():
        studies.recover()
    status = studies.status()
    watch(status)
    mirror.begin()
    try:
        with terminated_like_interrupted():
            if not status["done"]:
                pool.start()
            while pool.restart_dead(_finished(status)):
                time.sleep(_LOOK_SECONDS[isinstance(studies.store, Database)])
                status = patiently(studies.status)
                watch(status)
                patiently(mirror.look)
            status = patiently(studies.status)
            watch(status)
    except BaseException:
        pool.kill()
        # Whoever goes on looks, too; what went wrong here must not hide why the sweep ends.
        with contextlib.suppress(Exception), studies.store.claiming():
            studies.recover()
        mirror.close("KILLED")
        raise
    mirror.close("FINISHED")
    return status


def _finished(status: Mapping[str, Any]) -> int:
    return sum(count for state, count in status["states"].items() if state in ("COMPLETE", "PRUNED", "FAIL"))


def _last_error(studies: Studies, label: str) -> str:
    arm = next(each for each in studies.arms if each.label == label)
    errors = [trial.user_attrs.get("error") for trial in arm.trials(TrialState.FAIL)]
    return str(errors[-1]) if errors else ""


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, which a cluster sends before it kills, is as clean an end as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
