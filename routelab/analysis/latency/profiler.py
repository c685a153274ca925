"""Where the time of a forward pass goes: every moment is charged to one part of the model, so that shares add up to 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from routelab.backbones.attention import SelfAttention
from routelab.experts.feed_forward import FeedForward
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Router

PARTS = ("router", "dispatch", "experts", "feed-forward", "attention", "rest")
"""router: its scores and choices. dispatch: what else a mixture layer does: capacity, sorting, gathering rows and putting them
back; latent projections and zero-compute experts. experts: the products of the bank, and of experts that every token sees.
feed-forward: the dense ones. rest: embedding, norms, residuals, the output's matrix, and python between them."""

REST = "rest"

_KERNELS = ("fused", "grouped", "batched", "loop")


class Stopwatch:
    """A clock that always runs for exactly one part: the innermost one that was entered and not left.

    now: seconds; what waits for a device belongs into it. seconds: what each part was charged so far.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._inside = [REST]
        self._since = 0.0

    def start(self) -> None:
        """From here on time is charged, to the rest at first."""
        self._inside, self._since = [REST], self.now()

    def enter(self, part: str) -> None:
        """From here on to `part`."""
        self._charge()
        self._inside.append(part)

    def leave(self) -> None:
        """From here on to the part that the last one lies in."""
        self._charge()
        self._inside.pop()

    def stop(self) -> None:
        """Nothing is charged until the next start."""
        self._charge()

    def _charge(self) -> None:
        now = self.now()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    @property
    def shares(self) -> dict[str, float]:
        """Parts of the whole; they add up to 1."""
        whole = sum(self.seconds.values())
        return {part: seconds / whole if whole else 0.0 for part, seconds in self.seconds.items()}


@contextmanager
def timed_parts(model: nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Charge what the parts of `model` do to `watch`, as long as this lasts.

    Where the kernel "fused" runs, it gathers and weighs rows itself: that is charged to the experts.
    """
    hooks: list[Any] = []
    patched: list[tuple[nn.Module, str]] = []
    always = {layer.shared for layer in model.modules() if isinstance(layer, MixtureLayer)}
    try:
        for module in model.modules():
            part = _part_of(module, module in always)
            if part is not None:
                hooks.append(module.register_forward_pre_hook(lambda *_, part=part: watch.enter(part)))
                hooks.append(module.register_forward_hook(lambda *_: watch.leave()))
            if isinstance(module, ExpertBank):
                # Called by name by the dispatch: a bank has no forward that hooks could see.
                for name in _KERNELS:
                    module.__dict__[name] = _charged(getattr(module, name), watch)
                    patched.append((module, name))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for bank, name in patched:
            del bank.__dict__[name]


def _part_of(module: nn.Module, always: bool) -> str | None:
    if isinstance(module, Router):
        return "router"
    if isinstance(module, MixtureLayer):
        return "dispatch"
    if isinstance(module, FeedForward):
        return "experts" if always else "feed-forward"
    return "attention" if isinstance(module, SelfAttention) else None


def _charged(kernel: Callable[..., Any], watch: Stopwatch) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        watch.enter("experts")
        try:
            return kernel(*args, **options)
        finally:
            watch.leave()

    return call


def clock_of(device: torch.device, cpu_time: bool = False) -> Callable[[], float]:
    """Seconds; on a GPU, once it has done what was asked of it so far. cpu_time: those that this thread was at work, which other
    programs on the machine do not add to."""
    if cpu_time:
        return time.thread_time
    if device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now
