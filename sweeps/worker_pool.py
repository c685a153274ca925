"""Worker processes of a sweep on one machine, pinned to cores or a GPU and replaced when they die."""

from __future__ import annotations

import traceback
import warnings
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from routelab.core.errors import UsageError
from routelab.core.processes import ProcessSettings, WorkerProcess, available_cores, gpu_environment

_MAX_DEATHS_PER_WORKER = 5
"""The pool gives up after more deaths than these times the workers, without a completed trial in between."""


def shares(cores: list[int], workers: int) -> list[list[int]]:
    """The cores of each worker: equal runs of them, or one of them each where there are more workers than cores."""
    if workers >= len(cores):
        return [[cores[i % len(cores)]] for i in range(workers)]
    return [cores[i * len(cores) // workers : (i + 1) * len(cores) // workers] for i in range(workers)]


class WorkerPool:
    """Pool of processes that work on the studies of a sweep. They end when no trial is left to do.

    Args:
        name: name of the study.
        url: storage of the study.
        workers: number of processes.
        gpus: GPUs that the workers take in turn; 0 on a CPU.
    """

    def __init__(self, name: str, url: str, workers: int, gpus: int) -> None:
        self._name, self._url = name, url
        # One thread per worker, so that a trial's value does not depend on the number of workers.
        self._settings = [
            ProcessSettings(1, tuple(cores), gpu_environment(number, gpus))
            for number, cores in enumerate(shares(available_cores(), workers))
        ]
        self._running: dict[int, tuple[WorkerProcess, Future[None]]] = {}
        self._consecutive_deaths, self._last_finished = 0, -1

    def start(self) -> None:
        """Start every worker."""
        for number in range(len(self._settings)):
            self._start(number)

    def _start(self, number: int) -> None:
        worker = WorkerProcess(self._settings[number])
        self._running[number] = worker, worker.submit(_work_on, self._name, self._url)

    def restart_dead(self, finished: int) -> bool:
        """Restart workers that died.

        Args:
            finished: trials completed so far by all workers of the study; progress resets the count of deaths.

        Returns:
            True while any worker is alive.

        Raises:
            UsageError: a worker raised it, or workers die one after another without completing a trial.
        """
        if finished != self._last_finished:
            self._consecutive_deaths, self._last_finished = 0, finished
        for number, (worker, future) in list(self._running.items()):
            if not future.done():
                continue
            error = future.exception()
            exit_code = worker.exit_code if isinstance(error, BrokenProcessPool) else 1
            worker.kill()
            del self._running[number]
            if error is None:
                continue
            if isinstance(error, UsageError):
                raise error
            self._consecutive_deaths += 1
            if self._consecutive_deaths > _MAX_DEATHS_PER_WORKER * len(self._settings):
                raise UsageError(
                    f"study={self._name!r}: {self._consecutive_deaths} workers died in a row (last exit code {exit_code})"
                )
            self._start(number)
        return bool(self._running)

    def kill(self) -> None:
        """End every worker at once. Their trials keep their last checkpoints."""
        for worker, _ in self._running.values():
            worker.kill()
        self._running = {}


def _work_on(name: str, url: str) -> None:
    """Work on a study until no trial is left to do: the task of one worker."""
    warnings.simplefilter("ignore")
    from routelab.sweeps.storage import open_store
    from routelab.sweeps.studies import Studies
    from routelab.sweeps.sweep import open_sweep
    from routelab.sweeps.worker import work

    try:
        studies = Studies.load(name, open_store(url, create=False))
        if studies is None:
            raise UsageError(f"there is no study {name!r} in {url}")
        work(open_sweep(studies), studies)
    except UsageError:
        raise
    except Exception:
        traceback.print_exc()
        raise
