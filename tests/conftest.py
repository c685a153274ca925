"""What tests of several folders share."""

import importlib
import sys
from contextlib import contextmanager

import pytest
import torch

# One thread a process: pytest runs a process per core, and small products lose more than they gain by threads.
torch.set_num_threads(1)

if not torch.accelerator.is_available():
    # For devices that may yet be initialised, every torch.manual_seed formats the whole call stack, up to four times: a fifth of
    # the time of tests that seed often. Without any such device the seeds go nowhere.
    for devices in (torch.cuda, torch.xpu, torch.mtia):
        devices.manual_seed_all = lambda seed: None


class PowerCutError(BaseException):
    """The power goes off: no exception, which the loop would put down to the arm."""


@pytest.fixture
def power_cut(monkeypatch):
    """`with power_cut(step):` a run within is cut off before that step, and raises no further."""
    from routelab.training.module import TrainingModule

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
