"""Groups of processes that train one run together."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed


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
    """Run `call(tell, *arguments)` in `count` new processes that form a group; returns what process 0 returned.

    What process 0 tells is handed to `heard`. If a process fails, the others are ended and its error is raised here.
    """
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // count)
    group = torch.multiprocessing.start_processes(
        _member, (call, arguments, count, free_port(), threads, results), count, join=False, start_method="spawn"
    )
    assert group is not None
    value = None
    ended = False
    try:
        while not ended:
            ended = group.join(timeout=0.2)
            while not results.empty():
                done, said = results.get()
                if done:
                    value = said
                else:
                    heard(said)
    except BaseException:
        for process in group.processes:
            process.kill()
        raise
    return value


def _member(
    number: int, call: Callable[..., Any], arguments: tuple[Any, ...], count: int, port: int, threads: int, results: Any
) -> None:
    end_with_parent()
    os.environ.update(environment(number, count, port))
    torch.set_num_threads(threads)

    def tell(what: Any) -> None:
        if number == 0:
            results.put((False, what))

    value = call(tell, *arguments)
    if number == 0:
        results.put((True, value))
    if distributed.is_initialized():
        distributed.destroy_process_group()


def end_with_parent() -> None:
    """A parent that was killed cannot end its children: they look for themselves."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
