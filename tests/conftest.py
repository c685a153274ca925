"""Fixtures and settings for tests of several folders."""

import gc
import importlib
import itertools
import queue
import shutil
import sys
from concurrent.futures import Future
from contextlib import contextmanager

import pytest
import torch

from routelab.core import processes

# One thread a process: pytest runs a process per core, and small products lose more than they gain by threads.
torch.set_num_threads(1)

if not torch.accelerator.is_available():
    # Until a device is initialised, every torch.manual_seed formats the entire call stack for it, up to four times: a fifth of the
    # time of tests that seed often. Without such a device the seeds have no effect.
    for devices in (torch.cuda, torch.xpu, torch.mtia):
        devices.manual_seed_all = lambda seed: None


def pytest_collection_finish():
    """Exclude the objects that imports created from garbage collection. A full collection takes a third of a second, and
    Lightning, statsmodels and the workers of comparisons request one after many of their steps."""
    gc.collect()
    gc.freeze()


class PowerCutError(BaseException):
    """The power goes off: no exception, which the loop would put down to the arm."""


@pytest.fixture
def power_cut(monkeypatch):
    """`with power_cut(step):` a run within is cut off before that step, and raises no further."""
    from routelab.training.lightning_module import TrainingModule

    real = TrainingModule._optimizer_step

    @contextmanager
    def cut(step):
        def until(self, share):
            if self.step == step:
                raise PowerCutError
            real(self, share)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingModule, "_optimizer_step", until)
            with pytest.raises(PowerCutError):
                yield

    return cut


@pytest.fixture
def result():
    """Everything of a run's record that it comes to again when it is cut off and resumed, or shares a part of its training:
    all but the clock, the process's memory and the way it came about."""

    def of(run):
        apart = ("resumed_at", "shared_steps", "memory")
        record = {key: value for key, value in run.record.items() if not key.startswith("seconds") and key not in apart}
        record["curve"] = [{key: value for key, value in point.items() if key != "seconds"} for point in record["curve"]]
        return record

    return of


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """`importable(name, source)` is a module that new processes can import too: they are given this one's sys.path."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def module(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        return importlib.import_module(name)

    yield module
    for name in made:
        sys.modules.pop(name, None)


class _LocalWorker:
    """Worker that runs its tasks in this process, one after another, when `_run_next_task` is called."""

    def submit(self, task, /, *arguments):
        future = Future()
        future.call, future.number = (lambda: task(*arguments)), next(_numbers)
        return future


class _LocalChannel:
    """Channel that delivers messages at once."""

    def __init__(self):
        self.queue = queue.SimpleQueue()
        processes._channel = self.queue

    def messages(self):
        while not self.queue.empty():
            yield self.queue.get()


_numbers = itertools.count()


@contextmanager
def _local_pool(settings, channel=None):
    yield [_LocalWorker() for _ in settings]


def _run_next_task(pending, timeout, return_when):
    future = min(pending, key=lambda future: future.number)
    try:
        future.set_result(future.call())
    except Exception as error:
        future.set_exception(error)
    return {future}, set(pending) - {future}


@pytest.fixture(scope="session")
def in_this_process():
    """Return a context in which comparisons train in this process. A worker spends seconds of CPU time on imports.

    Use it in tests of the results of a comparison, not in tests of its processes."""

    @contextmanager
    def local_execution():
        from routelab.comparison import execute
        from routelab.training import run

        load, loaded = run.load_data, {}

        def load_once(spec):
            if repr(spec.data) not in loaded:
                loaded[repr(spec.data)] = load(spec)
            return loaded[repr(spec.data)]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "_channel", None)
            patch.setattr(execute, "Channel", _LocalChannel)
            patch.setattr(execute, "worker_pool", _local_pool)
            patch.setattr(execute, "wait", _run_next_task)
            patch.setattr(run, "load_data", load_once)
            # A garbage collection of the objects of all tests takes longer than most runs in tests.
            patch.setattr(execute, "_let_go", lambda: None)
            yield

    return local_execution


@pytest.fixture
def local_training(in_this_process, new_store, tmp_path):
    """Train the comparisons of a test in this process, with an MLflow database that already exists."""
    new_store(tmp_path / "results/mlflow.db")
    with in_this_process():
        yield


@pytest.fixture(scope="session")
def new_store(tmp_path_factory):
    """Return a function that copies an empty MLflow database to a path. Creating its tables takes most of a second."""
    from routelab.tracking.mlflow_tracker import Tracker

    empty = tmp_path_factory.mktemp("store") / "mlflow.db"

    def copy_to(path):
        if not empty.exists():
            Tracker(f"sqlite:///{empty}", "unused").open()
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty, path)

    return copy_to
