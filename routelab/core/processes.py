"""Worker processes on this machine.

Comparisons, sweeps, groups of processes that train one run, and the examples all use `WorkerProcess`. A worker is an
executor of `concurrent.futures` with a single process, so that the death of one process breaks no other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

_CONTEXT = multiprocessing.get_context("spawn")

_EXIT_SECONDS = 1.0
"""How long to wait for the exit status of a process that has died."""

_channel: Any = None
"""Queue to the parent process; None outside of a worker."""


@dataclass(frozen=True)
class ProcessSettings:
    """Environment of one worker process.

    Attributes:
        threads: threads of torch; None does not import torch.
        cores: numbers of the cores that the process is pinned to; empty leaves them to the operating system.
        environment: environment variables to set before any task.
    """

    threads: int | None = 1
    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Channel:
    """Messages from workers to the process that started them."""

    def __init__(self) -> None:
        self.queue = _CONTEXT.Queue()

    def messages(self) -> Iterator[Any]:
        """Yield the messages that have arrived, without waiting for more."""
        while True:
            try:
                yield self.queue.get_nowait()
            except (queue.Empty, EOFError, OSError):
                return


class WorkerProcess:
    """One process that runs one task after another. It ends when its parent does, and ignores Ctrl-C, which the parent handles.

    Args:
        settings: environment of the process.
        channel: where `send` puts messages; None for tasks that send none.
    """

    def __init__(self, settings: ProcessSettings | None = None, channel: Channel | None = None) -> None:
        self._executor = ProcessPoolExecutor(
            1,
            mp_context=_CONTEXT,
            initializer=_start,
            initargs=(settings or ProcessSettings(), None if channel is None else channel.queue),
        )
        self._process: Any = None

    def submit(self, task: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run a task after those that were submitted before.

        Args:
            task: a function that a new process can import.
            arguments: its arguments, which are pickled.

        Returns:
            A future of the result. It raises `BrokenProcessPool` if the process died.
        """
        future = self._executor.submit(task, *arguments)
        # The executor forgets a process that died, and with it the exit code.
        self._process = next(iter(self._executor._processes.values()), self._process)
        return future

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process; None while it runs or before the first task."""
        if self._process is None:
            return None
        end = time.monotonic() + _EXIT_SECONDS
        # The executor's own thread may have collected the exit status and not yet have stored it.
        while self._process.exitcode is None and time.monotonic() < end:
            time.sleep(0.01)
        code: int | None = self._process.exitcode
        return code

    def kill(self) -> None:
        """End the process at once and drop its tasks."""
        if self._process is not None:
            self._process.kill()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.join()

    def close(self) -> None:
        """Let the process end after its tasks, and wait for it."""
        self._executor.shutdown()


def send(message: Any) -> None:
    """Send a message from a task to the process that started its worker."""
    _channel.put(message)


def run_tasks(
    task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], settings: Sequence[ProcessSettings]
) -> Iterator[tuple[int, Future[Any]]]:
    """Run a task once for each tuple of arguments, on as many workers as there are settings.

    Args:
        task: a function that a new process can import.
        arguments: tuples of arguments, in the order in which tasks are started.
        settings: one entry for each worker.

    Yields:
        The index of each tuple and its finished future, in the order of completion.
    """
    if arguments and not settings:
        raise ValueError("settings is empty; one entry for each worker is needed")
    pending = list(range(len(arguments)))[::-1]
    with worker_pool(settings[: len(arguments)]) as workers:
        running: dict[Future[Any], tuple[int, WorkerProcess]] = {}
        idle = list(workers)
        while pending or running:
            while pending and idle:
                index, worker = pending.pop(), idle.pop()
                running[worker.submit(task, *arguments[index])] = (index, worker)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index, worker = running.pop(future)
                idle.append(worker)
                yield index, future


@contextlib.contextmanager
def worker_pool(settings: Iterable[ProcessSettings], channel: Channel | None = None) -> Iterator[list[WorkerProcess]]:
    """Provide one worker for each entry of `settings`. An exception kills the workers; otherwise they end after their tasks."""
    workers = [WorkerProcess(entry, channel) for entry in settings]
    try:
        yield workers
        for worker in workers:
            worker.close()
    except BaseException:
        for worker in workers:
            worker.kill()
        raise


def available_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def gpu_environment(number: int, gpus: int) -> dict[str, str]:
    """Return the environment variables that show one GPU to worker `number`.

    Args:
        number: number of the worker, from 0; workers take the GPUs in turn.
        gpus: GPUs that this process sees; 0 for none.

    Returns:
        `CUDA_VISIBLE_DEVICES`, or nothing without a GPU. Names in that variable of this process are kept.
    """
    if not gpus:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) == gpus else [str(index) for index in range(gpus)]
    return {"CUDA_VISIBLE_DEVICES": names[number % gpus]}


def _start(settings: ProcessSettings, channel: Any) -> None:
    """Prepare a new worker."""
    global _channel  # noqa: PLW0603 - one channel per worker process
    _channel = channel
    # Ctrl-C reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(settings.environment)
    if settings.cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, settings.cores)
    exit_when_parent_dies()
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)


def exit_when_parent_dies() -> None:
    """Wait in a thread for the end of the parent process: a parent that is killed cannot end its children."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
