"""Which weight of a published block is which of ours: functions from its named tensors to one tensor in our layout.

They are linear, so they carry gradients as well as values. Ours: `experts.up` and `gate` (E, D, H), `down` (E, H, D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from routelab.parity.differences import Named


def same(name: str) -> Callable[[Named], Tensor]:
    """The tensor as it is."""
    return lambda named: named(name)


def turned(name: str) -> Callable[[Named], Tensor]:
    """A weight kept as (output, input), turned into our (input, output)."""
    return lambda named: named(name).mT


def parts(name: str, axis: int, index: int, *, step: bool = False) -> Callable[[Named], Tensor]:
    """Half of a fused gate and up projection: by halves, or every other one."""

    def take(named: Named) -> Tensor:
        fused = named(name)
        if step:
            return fused[..., index::2]
        return fused.chunk(2, dim=axis)[index]

    return take


def stacked(pattern: str, experts: int, *, turn: bool = True) -> Callable[[Named], Tensor]:
    """The experts' own tensors, one beside another; {} in the pattern is the expert's number."""

    def take(named: Named) -> Tensor:
        whole = torch.stack([named(pattern.format(expert)) for expert in range(experts)])
        return whole.mT if turn else whole

    return take


def two_layers(prefix: str, experts: int, first: int, second: int) -> dict[str, Callable[[Named], Tensor]]:
    """Experts that are `nn.Sequential`s with biased linear layers at two places."""
    return {
        "experts.up": stacked(f"{prefix}.{first}.weight", experts),
        "experts.down": stacked(f"{prefix}.{second}.weight", experts),
        "experts.up_bias": stacked(f"{prefix}.{first}.bias", experts, turn=False),
        "experts.down_bias": stacked(f"{prefix}.{second}.bias", experts, turn=False),
    }
