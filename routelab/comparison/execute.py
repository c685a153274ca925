"""Execution of runs in worker processes: one single-threaded process per core, or one per GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from routelab.baselines.build import blame
from routelab.config.run_options import TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.errors import PluginWarning, StorageError, UsageError
from routelab.core.plugins import load_plugin
from routelab.core.processes import Channel, ProcessSettings, WorkerProcess, available_cores, gpu_environment, send, worker_pool
from routelab.records.json_io import is_full, write_json
from routelab.records.unit_file import UNITS, units_digest
from routelab.training.checkpoint import discard
from routelab.training.observer import CallbackObserver
from routelab.training.run import execute


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


def gpus(trainer: TrainerOptions) -> int:
    """The GPUs that runs will use; 0 on a CPU."""
    return torch.cuda.device_count() if trainer.accelerator in ("auto", "gpu") else 0


def default_workers(trainer: TrainerOptions) -> int:
    """One worker per GPU, or per core where there is none; fewer where a run takes several."""
    return max(1, (gpus(trainer) or len(available_cores())) // trainer.devices)


def run_jobs(jobs: list[Job], workers: int) -> Iterator[Event]:
    """Train all jobs and yield their events.

    Ctrl-C ends the workers at once; finished cells are on disk by then. A job whose process died is tried once more.

    Raises:
        StorageError: if a cell could not be written, because the other cells could not be written either.
    """
    if not jobs:
        return
    # Runs that take several GPUs divide them among themselves.
    pinned_gpus = gpus(jobs[0].spec.trainer) if jobs[0].spec.trainer.devices == 1 else 0
    count = min(workers, len(jobs))
    settings = [ProcessSettings(environment=gpu_environment(number, pinned_gpus)) for number in range(count)]
    by_key, channel = {job.key: job for job in jobs}, Channel()
    waiting, retried = list(jobs), set[str]()
    with worker_pool(settings, channel) as pool:
        idle = list(range(count))
        running: dict[Future[dict[str, Any]], tuple[Job, int]] = {}
        while waiting or running:
            while waiting and idle:
                job, number = waiting.pop(0), idle.pop(0)
                running[pool[number].submit(_work, job)] = (job, number)
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            yield from _progress(channel, by_key)
            for future in done:
                job, number = running.pop(future)
                idle.append(number)
                try:
                    yield Event(job, 1.0, record=future.result())
                except BrokenProcessPool:
                    pool[number].kill()
                    pool[number] = WorkerProcess(settings[number], channel)
                    if job.key in retried:
                        yield Event(job, 1.0, record=failed(job, "its process died (out of memory?)"))
                    else:
                        retried.add(job.key)
                        waiting.append(job)


def _progress(channel: Channel, by_key: dict[str, Job]) -> Iterator[Event]:
    for key, share, point in channel.messages():
        if key in by_key:
            yield Event(by_key[key], share, point)


def _work(job: Job) -> dict[str, Any]:
    # The parent has already shown these warnings.
    warnings.simplefilter("ignore", PluginWarning)
    try:
        for plugin in job.spec.plugins:
            load_plugin(plugin)
        # The parent alone writes to the tracking store.
        observer = CallbackObserver(
            lambda share: send((job.key, share, None)), lambda point: send((job.key, None, dict(point)))
        )
        run = execute(job.spec, folder=job.folder, key=job.key, observer=observer, common=job.common)
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
    # A process that dies between its two files leaves a units file that is not of the record.
    origin = {"cell": job.key, "units_sha256": units_digest(job.folder / UNITS) if record.get("units") else None}
    record["provenance"] = {**record.get("provenance", {}), **origin}
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
