"""Workers: one single-threaded process per core, each training one cell after another."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routelab.training.loop import RunSpec, execute
from routelab.training.record import is_full, write_json
from routers.errors import StorageError, UsageError

_queue: Any = None


@dataclass(frozen=True)
class Job:
    """A cell to train, and the folder that its record goes to."""

    key: str
    spec: RunSpec
    folder: Path


@dataclass(frozen=True)
class Event:
    """Something happened to a job: `share` of its budget is spent, or it ended with a `record`."""

    job: Job
    share: float
    record: dict[str, Any] | None = None


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: list[Job], workers: int) -> Iterator[Event]:
    """Train all jobs, and tell what happens. Ctrl-C ends the workers at once; finished cells are on disk by then.

    StorageError if a cell could not be written: nor could the others.
    """
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    waiting = list(jobs)
    by_key = {job.key: job for job in jobs}
    crashed: dict[str, int] = {}
    while waiting:
        pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=_start, initargs=(channel,))
        futures: dict[Future[dict[str, Any]], Job] = {pool.submit(_work, job): job for job in waiting}
        waiting = []
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                yield from _progress(channel, by_key)
                for future in done:
                    job = futures[future]
                    try:
                        yield Event(job, 1.0, future.result())
                    except BrokenProcessPool:
                        # The pool cannot say whose process died: each job gets a second chance, alone in a new pool.
                        crashed[job.key] = crashed.get(job.key, 0) + 1
                        if crashed[job.key] < 2:
                            waiting.append(job)
                        else:
                            yield Event(job, 1.0, failed(job, "its process died (out of memory?)"))
            pool.shutdown()
            workers = 1 if waiting else workers
        except BaseException:
            for process in list(getattr(pool, "_processes", {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _progress(channel: Any, by_key: dict[str, Job]) -> Iterator[Event]:
    while True:
        try:
            key, share = channel.get_nowait()
        except (queue.Empty, EOFError, OSError):
            return
        if key in by_key:
            yield Event(by_key[key], share)


def _start(channel: Any) -> None:
    global _queue  # noqa: PLW0603 - one channel per worker process
    _queue = channel
    # Ctrl-C reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    """A parent that was killed cannot end its workers: they look for themselves."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    try:
        for plugin in job.spec.plugins:
            from routers.registry import load_plugin

            load_plugin(plugin)
        run = execute(job.spec, folder=job.folder, progress=lambda share: _queue.put((job.key, share)))
        record = run.record
    except UsageError as error:
        record = failed(job, str(error))
    except OSError as error:
        if is_full(error):
            # Every other cell would end here too, after its training.
            raise StorageError(f"cannot write {str(job.folder)!r}: {error.strerror or error}") from None
        record = failed(job, f"cannot write {str(job.folder)!r}: {error.strerror or error}")
    except Exception as error:
        # One arm's mistake must not take the others with it.
        record = failed(job, f"{type(error).__name__} before the first step: {next(iter(str(error).splitlines()), '')}")
    record["provenance"] = {**record.get("provenance", {}), "cell": job.key}
    write_json(job.folder / "record.json", record)
    return record


def failed(job: Job, reason: str) -> dict[str, Any]:
    """The record of a job that did not come to train."""
    return {
        "status": "failed", "error": reason, "arm": job.spec.label, "seed": job.spec.seed, "data": job.spec.data.get("name"),
        "config": job.spec.plain(), "test": {}, "curve": [], "provenance": {"cell": job.key},
    }  # fmt: skip
