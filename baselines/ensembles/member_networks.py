"""M networks of one shape, run side by side: over a leading axis where they are dense, else one after another.

Axes: M members, B examples, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.base import ParameterGroup, Penalty
from routelab.baselines.ensembles.batched_parameters import places_of
from routelab.baselines.ensembles.vectorized_forward import Together
from routelab.core.flops import Flops
from routelab.data.task import Batch
from routelab.routers.base import Routing


@dataclass(frozen=True)
class Outputs:
    """What the members made of a batch. values (M, B, K) or (M, B, S, K); penalties: means over the members."""

    values: Tensor
    flops: Flops
    penalties: dict[str, Penalty] = field(default_factory=dict)
    routings: Sequence[Routing] = ()


ALL = slice(None)


class Networks(nn.Module):
    """M networks. Called with a batch (B, ...) that all of them see, or with (M, B, ...), one for each."""

    count: int

    def forward(self, batch: Batch, apart: bool, which: slice = ALL) -> Outputs:
        """apart: whether every member has a batch of its own. which: the members that are asked."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch, apart, which)")

    def groups(self) -> list[ParameterGroup]:
        """The parameters, by what is clipped together."""
        raise NotImplementedError(f"{type(self).__name__} must define groups()")

    def update(self) -> None:
        """After each optimizer step."""

    def counts(self) -> list[Tensor]:
        """See `Arm.counts`."""
        return []


def networks_of(members: Sequence[SingleBackbone], template: SingleBackbone) -> Networks:
    """Members side by side where that gives the same, which it does not where rows are dispatched by the data, or where a
    network keeps state of its own in buffers. template: one more, which knows what one member costs."""
    routed = any(member.mixtures for member in members)
    return OneByOne(members) if routed or keeps_state(members[0].network) else SideBySide(members, template)


def keeps_state(network: nn.Module) -> bool:
    """Whether it has buffers that a checkpoint holds, as batch norm does."""
    return any(name in network.state_dict() for name, _ in network.named_buffers())


class SideBySide(Networks):
    """Stacked parameters, (M, ...) under the names that they have in one network, and one call for all (`Together`)."""

    def __init__(self, members: Sequence[SingleBackbone], template: SingleBackbone) -> None:
        super().__init__()
        self.count = len(members)
        self.network = members[0].network
        self.together = Together(self.network, template)
        stack_parameters(self.network, [member.network for member in members])

    def forward(self, batch: Batch, apart: bool, which: slice = ALL) -> Outputs:
        parameters = {place.name: getattr(place.owner, place.leaf) for place in self.together.places}
        if which != ALL:
            parameters = {name: value[which] for name, value in parameters.items()}
        values = self.together(parameters, batch, apart)
        return Outputs(values, self.together.flops(values, self.training))

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(list(self.network.parameters()), self.count)]


class OneByOne(Networks):
    """Members of any kind, each an arm of its own, in a loop."""

    def __init__(self, members: Sequence[SingleBackbone]) -> None:
        super().__init__()
        self.count = len(members)
        self.arms = nn.ModuleList(members)

    def forward(self, batch: Batch, apart: bool, which: slice = ALL) -> Outputs:
        numbers = range(self.count)[which]
        each = [self.one(number, batch.select(place) if apart else batch) for place, number in enumerate(numbers)]
        spent = Flops()
        penalties: dict[str, Penalty] = {}
        for outputs in each:
            spent += outputs.flops
            for name, penalty in outputs.penalties.items():
                before = penalties[name].raw if name in penalties else 0.0
                penalties[name] = Penalty(before + penalty.raw / len(each), penalty.weight)
        routings = [routing for outputs in each for routing in outputs.routings]
        return Outputs(torch.cat([outputs.values for outputs in each]), spent, penalties, routings)

    def one(self, number: int, batch: Batch) -> Outputs:
        """One member's outputs, (1, B, ...)."""
        arm = self.member(number)
        values, routings = arm.network(batch.inputs, batch.mask)
        flops = arm.flops(len(batch), routings, training=self.training)
        return Outputs(values.unsqueeze(0), flops, arm.penalties(routings), routings)

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(list(arm.parameters())) for arm in self.arms]

    def update(self) -> None:
        for number in range(self.count):
            self.member(number).update()

    def counts(self) -> list[Tensor]:
        return [count for number in range(self.count) for count in self.member(number).counts()]

    def member(self, number: int) -> SingleBackbone:
        """One of the arms."""
        arm = self.arms[number]
        assert isinstance(arm, SingleBackbone)
        return arm


def stack_parameters(network: nn.Module, members: Sequence[nn.Module]) -> None:
    """Replace every parameter of `network` by those of the members, stacked, under its name. What is tied stays tied."""
    each = [dict(member.named_parameters()) for member in members]
    stacked = {name: nn.Parameter(torch.stack([values[name].detach() for values in each])) for name in each[0]}
    for place in places_of(network):
        setattr(place.owner, place.leaf, stacked[place.name])
