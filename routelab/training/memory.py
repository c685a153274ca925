"""Memory of a run, in bytes: what its parameters and its optimizer hold, and the most that was in use at once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Footprint:
    """The peak from here on, above what was held at the start: of what tensors take on a GPU, else of the process's memory.

    On Linux only where there is no GPU: elsewhere the peak is None. A process's peak includes what libraries load on first use.
    """

    def __init__(self) -> None:
        self._start: int | None = None
        self._start_on_gpu = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._start_on_gpu = torch.cuda.memory_allocated()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self._start = _status("VmRSS")

    def peak(self, device: torch.device) -> int | None:
        """Bytes."""
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device) - self._start_on_gpu
        now = _status("VmHWM")
        return None if now is None or self._start is None else max(0, now - self._start)


def held(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Bytes of the parameters with their buffers, and of the optimizer's state."""
    state = [] if optimizer is None else [value for each in optimizer.state.values() for value in each.values()]
    return {
        "parameters": sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())),
        "optimizer": sum(value.nbytes for value in state if isinstance(value, torch.Tensor)),
    }


def _status(field: str) -> int | None:
    """A line of the kernel's account of this process, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    return None
