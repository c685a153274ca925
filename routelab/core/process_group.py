"""Groups of processes that train one run together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

import torch
from torch import distributed

from routelab.core.processes import Channel, ProcessSettings, send, worker_pool


def environment(number: int, count: int, port: int) -> dict[str, str]:
    """What process `number` of `count` on this machine must find in its environment, as torchrun sets it."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def inside() -> bool:
    """Whether this process is one of a group that was started already, by `launch` or by torchrun."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def free_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(call: Callable[..., Any], arguments: tuple[Any, ...], count: int, heard: Callable[[Any], None]) -> Any:
    """Run `call(tell, *arguments)` in `count` new processes that form a group.

    Args:
        call: a function that a new process can import. It may pass messages to `tell`.
        arguments: further arguments of `call`.
        count: number of processes.
        heard: called in this process with every message of process 0.

    Returns:
        The value that `call` returned in process 0.

    Raises:
        Exception: the error of a process that failed; the other processes are killed.
    """
    channel, port = Channel(), free_port()
    threads = max(1, torch.get_num_threads() // count)
    settings = [ProcessSettings(threads, environment=environment(number, count, port)) for number in range(count)]
    with worker_pool(settings, channel) as workers:
        futures = [worker.submit(_run_member, number, call, arguments) for number, worker in enumerate(workers)]
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            for message in channel.messages():
                heard(message)
            for future in done:
                # Raises the error of a failed process at once: the other processes may wait for it.
                future.result()
    # A worker sends messages from a thread, which may end after the worker's task, but ends before its process.
    for message in channel.messages():
        heard(message)
    return futures[0].result()


def _run_member(number: int, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Run one process's part of a group's task."""

    def tell(message: Any) -> None:
        if number == 0:
            send(message)

    value = call(tell, *arguments)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return value if number == 0 else None
