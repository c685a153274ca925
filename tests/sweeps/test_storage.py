"""Storages that go away, and workers that are looked for."""

import os
import subprocess
import sys

import pytest
from optuna.exceptions import StorageInternalError

from routelab.core.errors import StorageError
from routelab.sweeps.liveness import _started, gone, worker_id
from routelab.sweeps.storage import patiently


def test_a_database_that_comes_back_is_waited_for():
    left = iter([StorageInternalError("restarting"), StorageInternalError("restarting")])

    def call() -> int:
        error = next(left, None)
        if error is not None:
            raise error
        return 7

    assert patiently(call, seconds=1.0) == 7


def test_a_database_that_stays_away_ends_the_sweep_in_one_sentence():
    def call() -> None:
        raise StorageInternalError("gone")

    with pytest.raises(StorageError, match="the storage went away: .*`routelab sweep resume` goes on when it is back"):
        patiently(call, seconds=0.2)


def test_other_errors_are_not_waited_for():
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: 1 / 0)


def test_a_process_is_alive_dead_or_of_another_machine():
    assert gone(worker_id()) is False
    machine = worker_id().rpartition("/")[0].rpartition("/")[0]
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    mine = f"{machine}/{child.pid}/{_started(child.pid)}"
    assert gone(mine) is False
    child.kill()
    # Not yet waited for, it is a zombie: ended all the same.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert gone(mine) is True
    child.wait()
    assert gone(mine) is True
    # Another process with the number of a dead one is not it.
    assert gone(f"{machine}/{os.getpid()}/1") is True
    assert gone("elsewhere-1/1/1") is None
