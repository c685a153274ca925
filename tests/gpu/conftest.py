"""Where the tests of this folder run: on the CUDA device, and without one not at all.

ROUTELAB_GPU_TESTS=cpu runs them on a CPU. That proves nothing about a GPU, but that the tests themselves are sound.
"""

import os
from contextlib import contextmanager

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def device():
    if os.environ.get("ROUTELAB_GPU_TESTS") == "cpu" and not torch.cuda.is_available():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def accelerator(device):
    """What trainer.accelerator calls it."""
    return {"cuda": "gpu", "cpu": "cpu"}[device.type]


@pytest.fixture
def without_waiting(device):
    """A context in which any copy from the device to the host raises."""

    @contextmanager
    def checked():
        if device.type == "cpu":
            yield
            return
        torch.cuda.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    return checked
