"""Workers: one single-threaded process per core, each training one cell after another."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import queue
import signal
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from routelab.baselines.build import blame
from routelab.config.run_options import TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.errors import PluginWarning, StorageError, UsageError
from routelab.core.process_group import end_with_parent
from routelab.records.json_io import is_full, write_json
from routelab.training.checkpoint import discard
from routelab.training.lightning_module import Observer
from routelab.training.run import execute

_queue: Any = None


@dataclass(frozen=True)
class Job:
    """A cell to train, and the folder that its record goes to. common: what it shares with cells that are trained alike, see
    `execute`."""

    key: str
    spec: RunSpec
    folder: Path
    common: tuple[Path, str] | None = None


@dataclass(frozen=True)
class Event:
    """Something happened to a job: `share` of its budget is spent, its curve has a new `point`, or it ended with a `record`."""

    job: Job
    share: float | None
    point: Mapping[str, float] | None = None
    record: dict[str, Any] | None = None


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(trainer: TrainerOptions) -> int:
    """The GPUs that runs will use; 0 on a CPU."""
    return torch.cuda.device_count() if trainer.accelerator in ("auto", "gpu") else 0


def default_workers(trainer: TrainerOptions) -> int:
    """One worker per GPU, or per core where there is none; fewer where a run takes several."""
    return max(1, (gpus(trainer) or cores()) // trainer.devices)


def run_jobs(jobs: list[Job], workers: int) -> Iterator[Event]:
    """Train all jobs, and tell what happens. Ctrl-C ends the workers at once; finished cells are on disk by then.

    StorageError if a cell could not be written: nor could the others.
    """
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    groups = [list(jobs)] if jobs else []
    # Runs that take several GPUs share them out themselves.
    shared_gpus = gpus(jobs[0].spec.trainer) if jobs and jobs[0].spec.trainer.devices == 1 else 0
    by_key = {job.key: job for job in jobs}
    again: set[str] = set()
    while groups:
        group = groups.pop(0)
        pool = ProcessPoolExecutor(
            min(workers, len(group)), mp_context=context, initializer=_start,
            initargs=(channel, context.Value("i", 0), shared_gpus),
        )  # fmt: skip
        futures: dict[Future[dict[str, Any]], Job] = {pool.submit(_work, job): job for job in group}
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                yield from _progress(channel, by_key)
                for future in done:
                    job = futures[future]
                    try:
                        yield Event(job, 1.0, record=future.result())
                    except BrokenProcessPool:
                        # The pool cannot say whose process died: each job gets a second chance, in a pool of its own.
                        if job.key in again:
                            yield Event(job, 1.0, record=failed(job, "its process died (out of memory?)"))
                        else:
                            again.add(job.key)
                            groups.append([job])
            pool.shutdown()
        except BaseException:
            for process in list(getattr(pool, "_processes", {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _progress(channel: Any, by_key: dict[str, Job]) -> Iterator[Event]:
    while True:
        try:
            key, share, point = channel.get_nowait()
        except (queue.Empty, EOFError, OSError):
            return
        if key in by_key:
            yield Event(by_key[key], share, point)


def _start(channel: Any, started: Any, shared_gpus: int) -> None:
    global _queue  # noqa: PLW0603 - one channel per worker process
    _queue = channel
    if shared_gpus > 1:
        with started.get_lock():
            number, started.value = started.value, started.value + 1
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if len(visible) == shared_gpus else [str(i) for i in range(shared_gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % shared_gpus]
    # Ctrl-C reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(1)
    # The parent has said it.
    warnings.simplefilter("ignore", PluginWarning)


class _Reporter(Observer):
    """Tells the parent, which alone writes to the tracking store."""

    def __init__(self, key: str) -> None:
        self.key = key

    def spent(self, share: float) -> None:
        _queue.put((self.key, share, None))

    def point(self, point: Mapping[str, float]) -> None:
        _queue.put((self.key, None, dict(point)))


def _work(job: Job) -> dict[str, Any]:
    try:
        for plugin in job.spec.plugins:
            from routelab.core.plugins import load_plugin

            load_plugin(plugin)
        run = execute(job.spec, folder=job.folder, key=job.key, observer=_Reporter(job.key), common=job.common)
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
        record = failed(job, blame(job.spec.arm, error, "before the first step"))
    record["provenance"] = {**record.get("provenance", {}), "cell": job.key}
    write_json(job.folder / "record.json", record)
    discard(job.folder)
    _let_go()
    return record


def _let_go() -> None:
    """Give back what a run held before the next begins: a trainer and its module refer to each other, and glibc keeps freed
    memory in pieces (a worker grew by 40 to 200 MB with each run)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def opening(job: Job) -> dict[str, Any]:
    """The record of a job as far as it is known before it starts."""
    return {
        "arm": job.spec.label, "seed": job.spec.seed, "data": job.spec.data.get("name"), "config": job.spec.plain(),
        "provenance": {"cell": job.key},
    }  # fmt: skip


def failed(job: Job, reason: str) -> dict[str, Any]:
    """The record of a job that did not come to train."""
    return {**opening(job), "status": "failed", "error": reason, "test": {}, "curve": []}
