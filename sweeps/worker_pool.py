"""The worker processes of one machine: each pinned to its share of the cores or to its GPU, replaced when it dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
import warnings
from typing import Any

from routelab.core.errors import StorageError, UsageError

_DEATHS = 5
"""Workers that may die in a row, without a trial told in between, before the crew gives up."""


def shares(cores: list[int], workers: int) -> list[list[int]]:
    """The cores of each worker: equal runs of them, or one of them each where there are more workers than cores."""
    if workers >= len(cores):
        return [[cores[i % len(cores)]] for i in range(workers)]
    return [cores[i * len(cores) // workers : (i + 1) * len(cores) // workers] for i in range(workers)]


class Crew:
    """Worker processes on the studies of a sweep. They end by themselves when nothing is left to do."""

    def __init__(self, name: str, url: str, workers: int, gpus: int) -> None:
        self._name, self._url, self._gpus = name, url, gpus
        self._context = multiprocessing.get_context("spawn")
        self._words: Any = self._context.SimpleQueue()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        self._shares = shares(cores, workers)
        self._processes: dict[int, Any] = {}
        self._deaths, self._told = 0, -1

    def start(self) -> None:
        """Start every worker."""
        for number in range(len(self._shares)):
            self._start(number)

    def _start(self, number: int) -> None:
        gpu = None
        if self._gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            names = visible if len(visible) == self._gpus else [str(i) for i in range(self._gpus)]
            gpu = names[number % self._gpus]
        process = self._context.Process(target=_main, args=(self._name, self._url, self._shares[number], gpu, self._words))
        process.start()
        self._processes[number] = process

    def look(self, finished: int) -> bool:
        """Replace the dead; whether any worker is left. finished: trials told so far, by anyone.

        A worker's UsageError is raised here; RuntimeError if workers die one after another and nothing gets done.
        """
        if finished != self._told:
            self._deaths, self._told = 0, finished
        ended = [process for process in self._processes.values() if not process.is_alive()]
        # Asked after that: a worker says what is wrong before it ends.
        if not self._words.empty():
            kind, text = self._words.get()
            raise {"usage": UsageError, "storage": StorageError}.get(kind, RuntimeError)(text)
        for number, process in list(self._processes.items()):
            if process not in ended:
                continue
            process.join()
            del self._processes[number]
            if process.exitcode == 0:
                continue
            self._deaths += 1
            if self._deaths > _DEATHS * len(self._shares):
                raise UsageError(
                    f"study={self._name!r}: {self._deaths} workers died in a row (last exit code {process.exitcode})"
                )
            self._start(number)
        return bool(self._processes)

    def end(self) -> None:
        """End every worker at once. Their trials are where the last checkpoint left them."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()
        self._processes = {}


def _main(name: str, url: str, cores: list[int], gpu: str | None, words: Any) -> None:
    # Ctrl-C reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cores)
    warnings.simplefilter("ignore")
    import torch

    from routelab.core.process_group import end_with_parent
    from routelab.sweeps.storage import open_store
    from routelab.sweeps.studies import Studies
    from routelab.sweeps.sweep import open_sweep
    from routelab.sweeps.worker import work

    end_with_parent()
    # One thread, whatever the share: a trial's value must not depend on how many workers there were.
    torch.set_num_threads(1)
    try:
        studies = Studies.load(name, open_store(url, create=False))
        if studies is None:
            raise UsageError(f"there is no study {name!r} in {url}")
        work(open_sweep(studies), studies)
    except StorageError as error:
        words.put(("storage", str(error)))
    except UsageError as error:
        words.put(("usage", str(error)))
    except Exception:
        traceback.print_exc()
        os._exit(1)
