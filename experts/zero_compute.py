"""Zero-compute experts: choices beside the experts of a bank that cost no product, or next to none (MoE++).

Axes: G groups, S positions, T = G * S tokens, D features, E experts of the bank, F zero-compute experts, C of them constant,
P slots per expert, K = F * P, N assignments.

A router chooses among E + F experts, the last F of which are these. `split` takes its plan apart: what names one of the first E
is rows for the bank, the rest is a weighted sum of the token with itself and C constants, without gathering a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from routelab.core.flops import Cost, matmul
from routelab.experts.expert_registry import KINDS
from routelab.experts.feed_forward import check_sizes
from routelab.routers.base import fresh, truncated_normal_
from routelab.routers.plans import Blend, PerExpert, Plan, Ragged, Slots, TopK, token_expert


@dataclass(frozen=True)
class ZeroComputeKind:
    """scale: the expert returns scale * x. None: a1 x + a2 v, where v (D,) and the projection in (a1, a2) = softmax(x gate)
    are learned."""

    scale: float | None


ZERO = ZeroComputeKind(0.0)
"""0, at no cost: beside real experts, as in experts.zero=1 (Jin et al. 2024, MoE++)."""
COPY = ZeroComputeKind(1.0)
"""x, at no cost: beside real experts, as in experts.copy=1 (Jin et al. 2024, MoE++)."""
CONSTANT = ZeroComputeKind(None)
"""a1 x + a2 v, (a1, a2) = softmax(x gate): beside real experts, as in experts.constant=1 (Jin et al. 2024, MoE++)."""


class ZeroCompute(nn.Module):
    """F zero-compute experts, by the names of their kinds and in that order.

    Parameters, if there are constant ones: `gate` (C, D, 2) and `value` (C, D), which start at N(0, 0.02) and N(0, 1), cut at
    two deviations. Their two small products run for every token whoever chose them, 6 D C FLOPs forward, so that no shape hangs
    on the routing.
    """

    def __init__(self, d_model: int, kinds: Sequence[str]) -> None:
        super().__init__()
        check_sizes(d_model=d_model)
        self.d_model, self.kinds = d_model, tuple(kinds)
        self._fixed: list[tuple[int, float]] = []
        constant: list[int] = []
        for place, name in enumerate(kinds):
            kind = KINDS.get(name)
            if not isinstance(kind, ZeroComputeKind):
                raise ValueError(f"expert kind {name!r} computes products; zero-compute experts are zero, copy and constant")
            if kind.scale is None:
                constant.append(place)
            else:
                self._fixed.append((place, kind.scale))
        self.constants = len(constant)
        self.places: Tensor
        # A buffer, as indices in a list would be copied to a GPU in every pass, and waited for.
        self.register_buffer("places", torch.tensor(constant, dtype=torch.int64), persistent=False)
        if constant:
            self.gate = nn.Parameter(torch.zeros(len(constant), d_model, 2))
            self.value = nn.Parameter(torch.zeros(len(constant), d_model))
            if not self.gate.is_meta:
                self.init_parameters(fresh)

    @property
    def num_experts(self) -> int:
        """F."""
        return len(self.kinds)

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Each constant expert is drawn by its own number: more of them change none of the first."""
        for name, deviation in (("gate", 0.02), ("value", 1.0)) if self.constants else ():
            for number, part in enumerate(getattr(self, name).unbind(0)):
                truncated_normal_(part, deviation, generator(f"{name}/{number}"))

    def cost(self, rows: float) -> Cost:
        """FLOPs for `rows` tokens, or slots, whoever chose what."""
        return (matmul(1, self.d_model, 2 * self.constants) + matmul(1, self.constants, self.d_model)) * rows

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        """What the plan's choices of these F experts add to the output. (G, S, D) -> (G, S, D)."""
        if isinstance(plan, Slots):
            return self._slots(x, plan)
        groups, positions, _ = x.shape
        weight_TF, chosen_TF = _tables(plan, groups, positions)
        x_TD = x.flatten(0, 1)
        one = torch.ones_like(weight_TF)
        inside, outside = (weight_TF, chosen_TF) if plan.weight_on == "input" else (one, weight_TF)
        return self._mix(x_TD, inside, outside).view_as(x)

    def _mix(self, x_TD: Tensor, inside_TF: Tensor, outside_TF: Tensor) -> Tensor:
        """sum_f outside_f * E_f(inside_f * x)."""
        both_TF = inside_TF * outside_TF
        scale_T = sum((both_TF[:, place] * scale for place, scale in self._fixed if scale), torch.zeros_like(both_TF[:, 0]))
        if not self.constants:
            return x_TD * scale_T.unsqueeze(1).to(x_TD.dtype)
        logits_TC2 = (x_TD @ self.gate.to(x_TD.dtype).transpose(0, 1).flatten(1)).unflatten(1, (-1, 2))
        a_TC2 = (logits_TC2.float() * inside_TF.index_select(1, self.places).unsqueeze(-1)).softmax(-1)
        scale_T = scale_T + (both_TF.index_select(1, self.places) * a_TC2[..., 0]).sum(1)
        value_TC = outside_TF.index_select(1, self.places) * a_TC2[..., 1]
        added_TD = value_TC.to(x_TD.dtype) @ self.value.to(x_TD.dtype)
        return x_TD * scale_T.unsqueeze(1).to(x_TD.dtype) + added_TD.to(x_TD.dtype)

    def _slots(self, x: Tensor, plan: Slots) -> Tensor:
        groups, _, experts, places = plan.dispatch.shape
        rows_GKD = torch.bmm(plan.dispatch.flatten(2).transpose(1, 2).to(x.dtype), x)
        own_KF = torch.eye(experts, device=x.device).repeat_interleave(places, 0)
        if plan.keep is not None:
            keep = plan.keep.expand(groups, experts, places).reshape(groups, -1, 1)
        else:
            keep = torch.ones(1, 1, 1, device=x.device)
        outside = (own_KF * keep).expand(groups, -1, -1).flatten(0, 1)
        out_GKD = self._mix(rows_GKD.flatten(0, 1), torch.ones_like(outside), outside).view_as(rows_GKD)
        return torch.bmm(plan.combine.flatten(2).to(out_GKD.dtype), out_GKD).to(x.dtype)


def _tables(plan: TopK | PerExpert | Ragged | Blend, groups: int, positions: int) -> tuple[Tensor, Tensor]:
    """What each token's living assignments weigh for every expert of the plan, and how many they are: (T, F) float32 each."""
    keep = torch.ones_like(plan.weight) if plan.keep is None else plan.keep.to(plan.weight.dtype)
    weight = plan.weight * keep
    if isinstance(plan, Blend):
        return weight, keep
    token_N, expert_N = token_expert(plan, positions)
    cell_N = token_N * plan.num_experts + expert_N
    flat = weight.new_zeros(groups * positions * plan.num_experts)
    sums = [flat.index_add(0, cell_N, value.reshape(-1)).view(-1, plan.num_experts) for value in (weight, keep)]
    return sums[0], sums[1]


def split(plan: Plan, experts: int) -> tuple[Plan, Plan]:
    """The plan of a bank of the first `experts` experts, and the plan of the rest, which are counted from 0 again."""
    return _part(plan, 0, experts), _part(plan, experts, plan.num_experts)


def _part(plan: Plan, first: int, beyond: int) -> Plan:
    """What a plan asks of the experts from `first` up to `beyond`."""
    size = beyond - first
    if isinstance(plan, (TopK, Ragged)):
        inside = (plan.expert >= first) & (plan.expert < beyond)
        expert = (plan.expert - first).clamp(0, size - 1)
        return replace(plan, expert=expert, num_experts=size, keep=inside if plan.keep is None else plan.keep & inside)
    here = slice(first, beyond)
    if isinstance(plan, PerExpert):
        keep = None if plan.keep is None else plan.keep[:, here]
        return replace(plan, position=plan.position[:, here], weight=plan.weight[:, here], num_experts=size, keep=keep)
    if isinstance(plan, Slots):
        keep = plan.keep
        if keep is not None:
            keep = keep.expand(*keep.shape[:-2], plan.num_experts, keep.shape[-1])[..., here, :]
        return replace(plan, dispatch=plan.dispatch[:, :, here], combine=plan.combine[:, :, here], num_experts=size, keep=keep)
    keep = None if plan.keep is None else plan.keep[:, here]
    return replace(plan, weight=plan.weight[:, here], num_experts=size, keep=keep)
