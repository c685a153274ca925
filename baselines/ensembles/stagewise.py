"""Members trained one after another, each in a stage of the same run.

Axes: M members, N training examples, B examples of a batch, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.base import ParameterGroup, Stage, StepLoss
from routelab.baselines.ensembles.ensemble_base import PASS, MemberArm, member_losses
from routelab.baselines.ensembles.member_networks import OneByOne, Outputs
from routelab.core.flops import Flops
from routelab.data.task import Batch, Task


class StageWise(MemberArm):
    """Stage m trains member m, and the others are frozen; between two stages, a pass over the training split says what the
    next member is to learn. That pass is charged as training.

    A budget in steps or epochs is each member's, as it is where members train side by side; one in FLOPs or seconds is for
    all of them together. finished: how many members count, a buffer.
    """

    members: OneByOne
    finished: Tensor

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        super().build(task, seed, sizing=sizing)
        self.register_buffer("finished", torch.zeros((), dtype=torch.int64))
        self.stage = 0

    def networks(self, members: list[SingleBackbone]) -> OneByOne:
        return OneByOne(members)

    @property
    def current(self) -> int:
        """The member that is being trained."""
        return self.stage

    @property
    def rounds(self) -> int:
        return self.count

    def train_flops_per_example(self) -> float | None:
        """Of one member: only it is shown an example that is drawn. Each of the M rounds has one of its own."""
        return self.template.train_flops_per_example()

    @property
    def streams(self) -> Sequence[int]:
        return ()

    def stages(self) -> Sequence[Stage]:
        return [Stage(f"member {number}") for number in range(self.count)]

    def begin(self, stage: int) -> None:
        self.stage = stage
        for number in range(self.count):
            self.members.member(number).requires_grad_(number == self.current)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return [self.members.groups()[self.current]]

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        out = self.members.one(self.current, batch)
        each_B = member_losses(self.task, out.values, batch.targets, False)[0]
        weighted = (self.omega.value[self.stage, index] * each_B).mean()
        return StepLoss(weighted, out.flops, out.penalties, out.routings)

    def update(self) -> None:
        self.members.member(self.current).update()

    def counts(self) -> Sequence[Tensor]:
        return self.members.member(self.current).counts()

    def outputs_on(self, train: Batch) -> tuple[Tensor, Flops]:
        """What the current member makes of the whole training split, (N, ..., K), and what that cost."""
        found, spent = [], Flops()
        for start in range(0, len(train), PASS):
            out = self.members.one(self.current, train.select(slice(start, start + PASS)))
            found.append(out.values[0].float())
            spent += out.flops
        return torch.cat(found), spent

    def together(self, batch: Batch, members: int) -> Outputs:
        """Outputs of the first so many members."""
        return self.members(batch, False, slice(0, members))
