"""Liveness of workers: their identity, their heartbeat, and whether a process has ended."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from routelab.sweeps.storage import Store

BEAT_SECONDS, GRACE_SECONDS = 10, 60
"""Seconds between heartbeats, and seconds of silence after which a worker of another machine counts as dead."""


def worker_id() -> str:
    """This process, as `machine/pid/start`: the start tells it from a later process with the same number."""
    return f"{_machine()}/{os.getpid()}/{_started(os.getpid())}"


def _machine() -> str:
    with contextlib.suppress(OSError):
        # Containers may share a host name and not their processes.
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None if there is none (a zombie has ended), "?" where nobody can tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "?"


def gone(worker: str) -> bool | None:
    """Whether a worker of this machine has ended; None for one of another machine."""
    machine, _, rest = worker.rpartition("/")[0].rpartition("/")
    if machine != _machine():
        return None
    return _started(int(rest)) != worker.rpartition("/")[2]


class Heart:
    """Beats for a worker in a thread of its own, and tells which trial it is on."""

    def __init__(self, store: Store, worker: str) -> None:
        self._store, self._worker = store, worker
        self.trial_id: int | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def on(self, trial_id: int | None) -> None:
        """The worker has taken up a trial, or has none. Beats at once."""
        self.trial_id = trial_id
        self._store.beat(self._worker, trial_id)

    def _run(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            # A storage that is away for a while is no reason to die.
            with contextlib.suppress(Exception):
                self._store.beat(self._worker, self.trial_id)
