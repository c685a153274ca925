"""Worker processes: tasks, messages, deaths, and the GPUs that workers see."""

import operator
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from routelab.core import processes
from routelab.core.processes import (
    Channel,
    ProcessSettings,
    WorkerProcess,
    available_cores,
    gpu_environment,
    run_tasks,
    worker_pool,
)

LIGHT = ProcessSettings(threads=None)
"""Workers without torch start in a fraction of a second."""


def test_a_worker_runs_its_tasks_in_order_in_one_process():
    channel = Channel()
    with worker_pool([LIGHT], channel) as (worker,):
        futures = [worker.submit(os.getpid), worker.submit(processes.send, "text"), worker.submit(operator.truediv, 1, 0)]
        assert futures[0].result() not in (0, os.getpid())
        assert worker.submit(os.getpid).result() == futures[0].result()
        with pytest.raises(ZeroDivisionError):
            futures[2].result()
    # A thread of the worker sends the messages; it has ended with the worker.
    assert list(channel.messages()) == ["text"]


def test_a_worker_has_its_environment_and_its_cores():
    core = available_cores()[-1]
    with worker_pool([ProcessSettings(None, (core,), {"ROUTELAB_TEST": "here"})]) as (worker,):
        assert worker.submit(os.getenv, "ROUTELAB_TEST").result() == "here"
        if hasattr(os, "sched_getaffinity"):
            assert worker.submit(os.sched_getaffinity, 0).result() == {core}


def test_the_death_of_one_process_breaks_no_other():
    with worker_pool([LIGHT, LIGHT]) as (dying, living):
        first = living.submit(time.sleep, 0.1)
        death = dying.submit(os._exit, 7)
        with pytest.raises(BrokenProcessPool):
            death.result()
        assert dying.exit_code == 7
        assert first.result() is None
        assert living.submit(operator.add, 1, 2).result() == 3


def test_an_exception_kills_the_workers():
    def interrupted():
        with worker_pool([LIGHT]) as workers:
            pids.append(workers[0].submit(os.getpid).result())
            workers[0].submit(time.sleep, 60)
            raise KeyboardInterrupt

    pids = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_tasks_are_divided_among_workers_and_come_back_with_their_index():
    results = dict(run_tasks(operator.mul, [(n, n) for n in range(5)], [LIGHT, LIGHT]))
    assert {index: future.result() for index, future in results.items()} == {n: n * n for n in range(5)}


def test_kill_before_a_task_and_twice():
    worker = WorkerProcess(LIGHT)
    assert worker.exit_code is None
    worker.submit(time.sleep, 60)
    worker.kill()
    worker.kill()
    assert worker.exit_code == -signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "gpus", "visible", "expected"),
    [
        (0, 0, "", {}),
        (0, 2, "", {"CUDA_VISIBLE_DEVICES": "0"}),
        (3, 2, "", {"CUDA_VISIBLE_DEVICES": "1"}),
        (1, 2, "4,6", {"CUDA_VISIBLE_DEVICES": "6"}),
        (1, 2, "GPU-a,GPU-b", {"CUDA_VISIBLE_DEVICES": "GPU-b"}),
        (1, 2, "4", {"CUDA_VISIBLE_DEVICES": "1"}),
    ],
)
def test_workers_take_the_gpus_in_turn(number, gpus, visible, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_environment(number, gpus) == expected


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of a process from /proc")
def test_a_worker_ends_when_its_parent_is_killed():
    code = (
        "import os, time\n"
        "from routelab.core.processes import ProcessSettings, WorkerProcess\n"
        "if __name__ == '__main__':\n"
        "    worker = WorkerProcess(ProcessSettings(threads=None))\n"
        "    print(worker.submit(os.getpid).result(), flush=True)\n"
        "    worker.submit(time.sleep, 60)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 20
    while time.monotonic() < end and is_running(worker):
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(pid):
    """Return True for a process that exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
