"""One run in several processes, each with its share of every batch (data parallel).

Gradients are averaged once per optimizer step, after accumulation, in one flat buffer; what is counted (FLOPs, rows,
losses) is summed, so budgets, curves and records are those of the whole batch in every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from routelab.baselines.base import StepLoss
from routelab.core.collectives import processes
from routelab.core.flops import Flops
from routelab.training.routing_metrics import Tally


class Replicas(DDPStrategy):
    """Lightning's process group and devices, without the wrapper around the module.

    The wrapper reduces gradients during the backward of the one forward it has seen; a training step here holds many
    optimizer steps, several backwards each, and parameters that a stage has frozen.
    """

    def __init__(self) -> None:
        super().__init__(cluster_environment=TorchElasticEnvironment())

    def configure_ddp(self) -> None:
        """Nothing to wrap."""


def rank() -> int:
    """The number of this process among those that train together."""
    return distributed.get_rank() if processes() > 1 else 0


@dataclass
class Books:
    """What one optimizer step is to be charged and remembered for, over its micro-batches."""

    flops: Flops = field(default_factory=Flops)
    rows: Tally = field(default_factory=Tally)
    total: float | Tensor = 0.0
    losses: dict[str, float | Tensor] = field(default_factory=dict)

    def enter(self, result: StepLoss) -> None:
        """Add a micro-batch."""
        self.flops += result.flops
        self.rows.add_work(result.routings)
        self.total = self.total + result.total.detach()
        self._add("train/loss", result.task.detach())
        for name, penalty in result.penalties.items():
            self._add(f"train/{name}_loss", penalty.raw.detach())
            self._add(f"train/{name}_weighted", penalty.raw.detach() * penalty.weight)

    def share(self, device: torch.device) -> None:
        """Sum work over the processes, and average losses."""
        rows = {f"rows {name}": getattr(self.rows, name) for name in ("assigned", "kept", "executed")}
        work = {"model": self.flops.model, "executed": self.flops.executed, **rows}
        found = shared({**work, "total": self.total, **{f"={name}": value for name, value in self.losses.items()}}, device)
        self.flops = Flops(found["model"], found["executed"])
        self.rows = Tally()
        self.rows.add_rows(*(found[name] for name in rows))
        self.total = found["total"] / processes()
        self.losses = {name: found[f"={name}"] / processes() for name in self.losses}

    def _add(self, name: str, value: Tensor) -> None:
        self.losses[name] = self.losses.get(name, 0.0) + value


def shared(values: Mapping[str, float | Tensor], device: torch.device) -> dict[str, Tensor]:
    """Each value's sum over the processes, in float64, by one reduction. All processes must hold the same keys and shapes."""
    names = sorted(values)
    parts = [torch.as_tensor(values[name], dtype=torch.float64, device=device) for name in names]
    buffer = torch.cat([part.reshape(-1) for part in parts])
    distributed.all_reduce(buffer)
    sums = buffer.split([part.numel() for part in parts])
    return {name: total.view(part.shape) for name, total, part in zip(names, sums, parts, strict=True)}


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes. A parameter without one in this process counts as 0."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for dtype in {parameter.dtype for parameter in trained}:
        group = [parameter for parameter in trained if parameter.dtype == dtype]
        for parameter in group:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in group if parameter.grad is not None])
        distributed.all_reduce(flat)
        flat /= processes()
        for parameter, gradient in zip(group, flat.split([parameter.numel() for parameter in group]), strict=True):
            parameter.grad = gradient.view_as(parameter)
