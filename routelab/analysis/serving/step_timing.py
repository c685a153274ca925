"""The time that a step takes with experts on disk, against all of them in memory: settings take turns at every step.

Axes: B examples at a time, S positions, P of them in the prompt, V outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routelab.analysis.serving.serving_options import Options, Served, held_to
from routelab.analysis.trained_run import TrainedRun
from routelab.backbones.attention import KeyValues
from routelab.backbones.decoder import Decoder
from routelab.core.intervals import median_interval
from routelab.data.task import Batch
from routelab.experts.offload import ExpertFile, Offloaded
from routelab.routers.base import Routing

_LONGEST = 20.0
"""Seconds of timing beyond which no further batch is begun."""
_WARM = 8
"""Steps before the clock starts."""


@dataclass
class _Setting:
    """One way to run the model. served: None is the model as it is. seconds: of each timed step; work: of the processor, in the same
    step; prompts: of each timed prompt. stored: bytes that timed steps had fetched from storage."""

    served: Offloaded | None
    seconds: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    prompts: list[float] = field(default_factory=list)
    stored: int = 0

    def step(self, call: Callable[[], Any], timed: bool) -> Any:
        """`call()` in this setting."""
        before = storage_bytes() if timed else 0
        out, seconds, work = self._run(call)
        if timed:
            self.seconds.append(seconds)
            self.work.append(work)
            self.stored += storage_bytes() - before
        return out

    def prompt(self, call: Callable[[], Any], timed: bool) -> Any:
        """Likewise, of what comes before the steps."""
        out, seconds, _ = self._run(call)
        if timed:
            self.prompts.append(seconds)
        return out

    def _run(self, call: Callable[[], Any]) -> tuple[Any, float, float]:
        with self.served.serving() if self.served is not None else nullcontext():
            started, worked = time.perf_counter(), time.process_time()
            out = call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return out, time.perf_counter() - started, time.process_time() - worked


@torch.inference_mode()
def timed_steps(
    run: TrainedRun, how: Served, file: ExpertFile, slots: list[int], options: Options, size: int
) -> dict[int, dict[str, Any]]:
    """By number of slots the seconds of a step, against the model with all experts in memory, side by side: at every step
    all settings take turns. The first batch warms up."""
    layers = run.arm.mixtures

    def offloaded(number: int) -> _Setting:
        return _Setting(Offloaded(layers, file, number, per_layer=options.per_layer))

    # What is on disk is held to what comes from the same file with nothing left on disk.
    plain, whole = _Setting(None), offloaded(file.experts if options.per_layer else len(file.units))
    settings = [offloaded(number) for number in slots]
    everyone = [plain, whole, *settings]
    apart, equal, began = 0.0, True, time.monotonic()
    # On a GPU some sums have no order of their own, so that two passes alike may differ in the last bits.
    same = torch.equal if next(run.arm.parameters()).device.type == "cpu" else partial(torch.allclose, rtol=1e-3, atol=1e-4)
    for number, batch in enumerate(_batches(run, size)):
        if len(plain.seconds) >= options.steps or (number > 1 and time.monotonic() - began > _LONGEST):
            break
        for outputs in _steps(run, how, batch, everyone, number, timed=number > 0, limit=options.steps):
            equal = equal and all(same(other, outputs[1]) for other in outputs[2:])
            apart = max(apart, float((outputs[0] - outputs[1]).abs().max()))
    base, tokens = np.array(plain.seconds), 1 if how.mode == "decode" else run.arm.network.positions
    rows: dict[int, dict[str, Any]] = {}
    for number, setting in zip(slots, settings, strict=True):
        taken = np.array(setting.seconds)
        rows[number] = {
            "milliseconds": 1e3 * float(np.median(taken)),
            "milliseconds_p95": 1e3 * float(np.quantile(taken, 0.95)),
            "in_memory_milliseconds": 1e3 * float(np.median(base)),
            "ratio": median_interval((taken / base).tolist()).as_dict(),
            "work_ratio": median_interval((np.array(setting.work) / np.array(plain.work)).tolist()).as_dict(),
            "ratio_p95": float(np.quantile(taken, 0.95) / np.quantile(base, 0.95)),
            "prompt_milliseconds": 1e3 * float(np.median(setting.prompts)) if setting.prompts else None,
            "steps": len(taken),
            "outputs_equal": equal,
            "outputs_apart": apart,
            "storage_bytes_per_token": setting.stored / (len(taken) * size * tokens) if options.cold else None,
        }
    return rows


def _batches(run: TrainedRun, size: int) -> Iterator[Batch]:
    """Over and over, so that there is a first one to warm up with."""
    device = next(run.arm.parameters()).device
    while True:
        for first in range(0, len(run.sample) - size + 1, size):
            yield run.sample.select(slice(first, first + size)).to(device)


def _steps(
    run: TrainedRun, how: Served, batch: Batch, settings: list[_Setting], number: int, *, timed: bool, limit: int
) -> Iterator[list[Tensor]]:
    """The outputs of every setting at every step of one batch, settings taking turns in an order that shifts by one each step."""
    network, layers = run.arm.network, run.arm.mixtures

    def turns(step: int) -> list[int]:
        shift = (number + step) % len(settings)
        return [*range(shift, len(settings)), *range(shift)]

    outputs: list[Tensor] = [torch.empty(0)] * len(settings)
    if how.mode == "pass":
        for place in turns(0):
            torch.manual_seed(number)
            outputs[place] = settings[place].step(lambda: network(batch.inputs, batch.mask)[0], timed)
        yield outputs
        return
    assert isinstance(network, Decoder)
    caches: list[list[KeyValues]] = [network.caches() for _ in settings]
    routings: list[list[Routing]] = [[] for _ in settings]

    def call(place: int, positions: slice) -> Callable[[], tuple[Tensor, list[Routing]]]:
        return lambda: network(batch.inputs[:, positions], None, caches[place])

    for place in turns(0):
        outputs[place], routings[place] = settings[place].prompt(call(place, slice(0, how.prompt)), timed)
    yield outputs
    for step in range(how.prompt, network.positions):
        if len(settings[0].seconds) >= limit or (not timed and step >= how.prompt + _WARM):
            return
        for place in turns(step):
            with held_to(layers, routings[place], len(batch)) if how.per_text else nullcontext():
                outputs[place], _ = settings[place].step(call(place, slice(step, step + 1)), timed)
        yield outputs


def storage_bytes() -> int:
    """What this process has had fetched from storage so far; 0 where the kernel does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(next((line.split()[1] for line in lines if line.startswith("read_bytes")), 0))
