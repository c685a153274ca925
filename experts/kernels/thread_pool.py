"""Independent pieces of work on as many threads as torch uses, each piece on one thread.

torch splits every product among its threads, and they wait for each other after each one. For hundreds of small products
that waiting costs more than it saves, and where other processes want the same cores it costs many times more. Pieces that
do not depend on each other need to wait once, at the end.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Piece = TypeVar("Piece")

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def share_out(pieces: Sequence[Piece], worker: Callable[[], Callable[[Piece], Any]], threads: int) -> None:
    """Call `worker()(piece)` for every piece; each thread makes one worker, whose buffers are then its own.

    The pieces are taken in order by whichever thread is free. Gradients are off inside. Results must not depend on which
    thread does what. The first exception is raised here, once all threads have stopped.
    """
    if threads < 2 or len(pieces) < 2:
        work = worker()
        for piece in pieces:
            work(piece)
        return
    left = deque(pieces)
    workers = [worker() for _ in range(min(threads, len(pieces)))]
    # A thread is told what its caller is in: buffers made in inference mode may be written in it only.
    done = [_pool(threads).submit(_take, left, work, torch.is_inference_mode_enabled()) for work in workers]
    errors = [future.exception() for future in done]
    for error in errors:
        if error is not None:
            raise error


def useful_threads() -> int:
    """How many threads `share_out` may use here: 1 under a dispatch mode (such as FlopCounterMode) or the profiler, which
    see only the thread that they were started in."""
    if torch._C._len_torch_dispatch_stack() or torch.autograd._profiler_enabled():
        return 1
    return torch.get_num_threads()


def _take(left: deque[Piece], work: Callable[[Piece], Any], inference: bool) -> None:
    with torch.inference_mode() if inference else torch.no_grad():
        while True:
            try:
                piece = left.popleft()
            except IndexError:
                return
            try:
                work(piece)
            except BaseException:
                left.clear()
                raise


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            ready = threading.Barrier(threads + 1)
            pool = ThreadPoolExecutor(threads, thread_name_prefix="experts", initializer=_alone)
            waits = [pool.submit(ready.wait) for _ in range(threads)]
            ready.wait()
            for wait in waits:
                wait.result()
            # torch keeps the number in the thread, and a copy for threads to come, which the workers have overwritten.
            torch.set_num_threads(threads)
            _pools[threads] = pool
        return _pools[threads]


def _alone() -> None:
    torch.get_num_threads()  # a thread's first look at the number sets it, and would undo the next line later
    torch.set_num_threads(1)


def _in_child() -> None:
    _pools.clear()  # threads do not live on in a forked process
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)
