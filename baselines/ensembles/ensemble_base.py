"""Ensembles as one idea: M members of one base, and a matrix that says how much each training example weighs for each.

Axes: M members, N training examples, B examples of a batch, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.baselines.backbone_arm import SingleBackbone, whole
from routelab.baselines.base import ArmSpec, ParameterGroup, Prediction, StepLoss
from routelab.baselines.build import make_single
from routelab.baselines.ensembles.member_networks import Networks, Outputs, networks_of
from routelab.baselines.wrapper import Based
from routelab.core.seeds import key
from routelab.data.task import Batch, Task

PASS = 512
"""Examples of a batch of a pass over the training split."""


@dataclass(frozen=True)
class MemberOptions:
    """Options of every ensemble. members: M. base: the arm that each member is, `dense` or a router's name.

    d_model, hidden: the members' features and feed-forward width; None = those of the backbone section. They are what
    matching sizes, so that the members together cost what the reference does.
    """

    members: int = 8
    base: str = "dense"
    d_model: int | None = None
    hidden: int | None = None


class PerExample(nn.Module):
    """A buffer `value` with an entry for each training example: as long as the split, or as a saved state has it."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.empty(0))

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        found = state.get(f"{prefix}value")
        if found is not None and found.shape != self.value.shape:
            self.value = self.value.new_empty(found.shape, dtype=found.dtype)
        super()._load_from_state_dict(state, prefix, *rest)


class MemberArm(Based):
    """Base of the ensembles: trains M members at once on `loss = sum_m mean_i Omega[m, i] * loss(f_m(x_i), y_i)`.

    The losses are summed over the members and gradients clipped for each, so a member is what it would be alone: member m
    of seed s is the base arm of seed `member_seed(s, m)`, in its initial values and in the order of its data. Prediction
    averages the members' probabilities, or values.

    omega: the weights (M, N), a buffer. Here all are 1.
    """

    options_type = MemberOptions
    knobs = ("options.d_model", "options.hidden")

    members: Networks

    @classmethod
    def suggest(cls, trial: Any, spec: ArmSpec) -> dict[str, Any]:
        """The number of members. Matching keeps the work equal."""
        return {"options.members": trial.suggest_categorical("options.members", [2, 4, 8])}

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        self.task, self.seed = task, seed
        self.count = whole("members", self.options.members)
        spec = self.base_spec()
        self._template = (self._member(spec, 0, sizing=True),)
        self.check(task)
        self.omega = PerExample()
        if not sizing:
            self.members = self.networks([self._member(spec, number) for number in range(self.count)])

    def check(self, task: Task) -> None:
        """Refuse a task that this way of combining makes no sense for, with a ValueError."""

    def networks(self, members: list[SingleBackbone]) -> Networks:
        """What the built members are run by."""
        return networks_of(members, self.template)

    def _member(self, spec: ArmSpec, number: int, sizing: bool = False) -> SingleBackbone:
        return make_single(spec, self.task, member_seed(self.seed, number), sizing=sizing)

    @property
    def template(self) -> SingleBackbone:
        """One more member, without memory: it knows what a member costs and how it behaves."""
        return self._template[0]

    # Training

    @property
    def streams(self) -> Sequence[int]:
        return [member_seed(self.seed, number) for number in range(self.count)]

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return self.members.groups()

    def prepare(self, train: Batch) -> None:
        self.omega.value = self.weights(len(train)).to(train.inputs.device)

    def weights(self, examples: int) -> Tensor:
        """Omega (M, N) before the first step."""
        return torch.ones(self.count, examples)

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        apart = index.ndim == 2
        out = self.members(batch, apart)
        each_MB = member_losses(self.task, out.values, batch.targets, apart)
        weight_MB = self.omega.value.gather(1, index) if apart else self.omega.value[:, index]
        task_loss = (weight_MB * each_MB).mean()
        return StepLoss(task_loss, out.flops, out.penalties, out.routings, summed=len(out.values))

    def update(self) -> None:
        self.members.update()

    def counts(self) -> Sequence[Tensor]:
        return self.members.counts()

    # Prediction

    def predict(self, batch: Batch) -> Prediction:
        return self.prediction(batch, self.members(batch, False))

    def prediction(self, batch: Batch, out: Outputs) -> Prediction:
        """The average of the members' outputs."""
        groups, positions = self.template.network.layout(len(batch))
        average = mean_prediction(self.task, out.values)
        return Prediction(average, out.flops, out.routings, positions, groups, members=out.values)

    # What it costs

    def flops_per_example(self) -> float | None:
        return self.count * self.template.flops_per_example()

    def train_flops_per_example(self) -> float | None:
        return self.count * self.template.train_flops_per_example()

    @property
    def total_params(self) -> int:
        return self.count * self.template.total_params

    @property
    def active_params(self) -> int:
        return self.count * self.template.active_params


def member_seed(seed: int, number: int) -> int:
    """The seed of a member: the first one's is the run's, so that it starts as the base arm does."""
    return seed if number == 0 else key(seed, "member", number)


def member_losses(task: Task, values: Tensor, targets: Tensor, apart: bool) -> Tensor:
    """Loss (M, B) of every member on every example. values (M, B, ...); targets (B, ...), or (M, B, ...) if `apart`."""
    members, examples = values.shape[:2]
    wanted = targets if apart else targets.expand(members, *targets.shape)
    if task.kind == "classification" and members > 1:
        # A softmax over a short last axis takes several times as long as over one before it. One member's is the base arm's,
        # to the last bit.
        return F.cross_entropy(values.float().mT.contiguous(), wanted, reduction="none")
    return task.loss(values.flatten(0, 1), wanted.flatten(0, 1)).view(members, examples)


def mean_prediction(task: Task, values: Tensor) -> Tensor:
    """(M, B, ..., K) -> (B, ..., K): the mean of the values, or the logarithm of the mean of the probabilities."""
    if task.kind == "regression":
        return values.float().mean(0)
    return values.float().log_softmax(-1).logsumexp(0) - math.log(values.shape[0])
