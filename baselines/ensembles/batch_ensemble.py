"""BatchEnsemble: members that share every matrix, and scale its rows and columns each in their own way.

Axes: M members, B examples, K outputs, I and O rows and columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.base import ArmSpec, ParameterGroup, StepLoss
from routelab.baselines.ensembles.ensemble_base import MemberArm, MemberOptions, member_seed
from routelab.baselines.ensembles.member_networks import ALL, Networks, Outputs, keeps_state
from routelab.baselines.ensembles.vectorized_forward import Together
from routelab.core.initialisation import parameter_init_names
from routelab.core.seeds import key
from routelab.data.task import Batch, Task

INITIAL = ("random-signs", "normal")


@dataclass(frozen=True)
class BatchEnsembleOptions(MemberOptions):
    """scaling: how the vectors start: signs drawn at random, or N(1, 0.5)."""

    scaling: str = "random-signs"


class BatchEnsemble(MemberArm):
    """BatchEnsemble (Wen, Tran and Ba 2020): member m has the matrices W * (r_m s_m^T), W being shared.

    Its vectors (biases, norms) are each member's own. All members see the same batches, and their mean loss is trained, as in
    TabM (Gorishniy 2024), for they share what they learn. So there are M predictions for little more than the parameters of
    one; the FLOPs are those of M. The matrices are shared by all layers alike, embeddings too.

    Options: `members` (8), `scaling` ("random-signs", or "normal"); see `MemberOptions`. The base is dense.
    """

    options_type = BatchEnsembleOptions

    @classmethod
    def suggest(cls, trial: Any, spec: ArmSpec) -> dict[str, Any]:
        """The members, and how their vectors start."""
        return super().suggest(trial, spec) | {"options.scaling": trial.suggest_categorical("options.scaling", list(INITIAL))}

    def check(self, task: Task) -> None:
        if self.template.mixtures:
            raise ValueError(f"base is {self.options.base!r}; it must be dense, whose matrices the members share")
        if keeps_state(self.template.network):
            raise ValueError(
                f"backbone {self.template.backbone_name(task)!r} keeps state in buffers, as batch norm does, which members "
                "that share a network cannot"
            )
        if self.options.scaling not in INITIAL:
            raise ValueError(f"scaling is {self.options.scaling!r}; it must be one of {', '.join(INITIAL)}")

    def networks(self, members: list[SingleBackbone]) -> Networks:
        seeds = [member_seed(self.seed, number) for number in range(self.count)]
        return Sharing(members[0].network, self.template, seeds, self.options.scaling)

    @property
    def streams(self) -> Sequence[int]:
        return ()

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        loss = super().loss(batch, index)
        return StepLoss(loss.task, loss.flops)

    @property
    def total_params(self) -> int:
        shapes = [parameter.shape for parameter in self.template.parameters()]
        shared = [shape for shape in shapes if len(shape) >= 2]
        own = sum(sum(shape[:2]) for shape in shared) + sum(shape.numel() for shape in shapes if len(shape) < 2)
        return sum(shape.numel() for shape in shared) + self.count * own

    @property
    def active_params(self) -> int:
        return self.total_params


class Sharing(Networks):
    """One network whose matrices M members share. `rows` and `columns`: (M, I) and (M, O) for each matrix."""

    def __init__(self, network: nn.Module, template: SingleBackbone, seeds: Sequence[int], scaling: str) -> None:
        super().__init__()
        self.count, self.network = len(seeds), network
        self.together = Together(network, template)
        self.rows, self.columns = nn.ParameterDict(), nn.ParameterDict()
        self._matrices: dict[str, str] = {}
        own: dict[str, nn.Parameter] = {}
        init_names = parameter_init_names(network)
        for name, parameter in network.named_parameters():
            if parameter.ndim >= 2:
                self._matrices[name] = name.replace(".", "-")
                for number, (axis, vectors) in enumerate((("rows", self.rows), ("columns", self.columns))):
                    drawn = [
                        scale(parameter.shape[number], scaling, key(seed, "scaling", init_names[name], axis)) for seed in seeds
                    ]
                    vectors[self._matrices[name]] = nn.Parameter(torch.stack(drawn))
            else:
                own[name] = nn.Parameter(parameter.detach().repeat(self.count, *[1] * parameter.ndim))
        for place in self.together.places:
            if place.name in own:
                setattr(place.owner, place.leaf, own[place.name])

    def forward(self, batch: Batch, apart: bool, which: slice = ALL) -> Outputs:
        parameters = {}
        for name, owner, leaf, _ in self.together.places:
            value = getattr(owner, leaf)
            if name in self._matrices:
                rows, columns = (part[self._matrices[name]][which] for part in (self.rows, self.columns))
                parameters[name] = scaled(value, rows, columns)
            else:
                parameters[name] = value[which]
        values = self.together(parameters, batch, apart)
        return Outputs(values, self.together.flops(values, self.training))

    def groups(self) -> list[ParameterGroup]:
        shared = [value for name, value in self.network.named_parameters() if name in self._matrices]
        own = [value for name, value in self.network.named_parameters() if name not in self._matrices]
        return [ParameterGroup(shared), ParameterGroup([*own, *self.rows.values(), *self.columns.values()], self.count)]


def scaled(matrix: Tensor, rows_MI: Tensor, columns_MO: Tensor) -> Tensor:
    """The members' matrices W[i, o] r[m, i] s[m, o], (M, I, O); further axes of `matrix` follow."""
    rest = [1] * (matrix.ndim - 2)
    rows, columns = rows_MI.view(*rows_MI.shape, 1, *rest), columns_MO.view(len(columns_MO), 1, -1, *rest)
    return matrix * rows * columns


def scale(size: int, scaling: str, seed: int) -> Tensor:
    """Initial factors (size,)."""
    generator = torch.Generator().manual_seed(seed)
    if scaling == "normal":
        return 1 + 0.5 * torch.randn(size, generator=generator)
    return 2.0 * torch.randint(2, (size,), generator=generator) - 1
