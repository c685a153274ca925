"""Hierarchical routing: first a group of experts, then experts within it.

Axes: G groups of tokens, S positions, T = G * S tokens, D features, E experts, A groups of B = E / A experts, a chosen groups,
k chosen experts in each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import balance_loss
from routelab.routers.plans import TopK
from routelab.routers.topk import choose


class Hierarchical(Router):
    """Top-a of softmax(x V^T) over groups, then top-k of softmax(x W^T) within each (Shazeer et al. 2017, appendix B).

    The weight is the product of the two gates.
    A token runs a * k experts. With two choices a level's gates are divided by their sum, as a softmax over the two would
    be; with one choice the gate is the raw probability, since 1 would leave that level without a gradient.

    Options: `top_groups` (a, 1; the paper 2) and `top_k` (k, 2; 1 where a group has one expert), each 1 or 2;
    `expert_groups` (A, None: of the divisors of E that are at least `top_groups` the nearest to its square root, the smaller
    of two; a prime E thereby has one group, which is flat routing, or E). Consecutive experts make a group: expert e is in
    group e // B.

    Departures: the gates have no noise, and the loss is `balance` over the experts (weight 0.01), with the product of the two
    unselected probabilities as a token's probability of an expert, where the paper uses importance and load.

    Parameters: `group_weight` (A, D), `weight` (E, D). Causal, not batch-coupled.
    """

    init_names: ClassVar[Mapping[str, str]] = {"group_weight": "group_weight"}

    loss_weights = {"balance": 1e-2}
    tuned_top_k = (1,)
    published = ({"top_groups": 2},)  # the paper's, with 2 choices within each

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and the number of groups that a token goes to."""
        return super().suggest(trial) | {"top_groups": trial.suggest_categorical("top_groups", [1, 2])}

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        *,
        expert_groups: int | None = None,
        top_groups: int = 1,
        top_k: int | None = None,
    ) -> None:
        super().__init__(d_model, num_experts)
        groups = nearest_divisor(num_experts, top_groups) if expert_groups is None else expert_groups
        if groups < 1 or num_experts % groups:
            divisors = ", ".join(str(n) for n in range(1, num_experts + 1) if num_experts % n == 0)
            raise ValueError(f"expert_groups is {groups}; it must divide the {num_experts} experts: one of {divisors}")
        size = num_experts // groups
        inside = min(2, size) if top_k is None else top_k
        for name, value, most, what in (
            ("top_groups", top_groups, groups, "groups"),
            ("top_k", inside, size, "experts of a group"),
        ):
            if not 1 <= value <= min(2, most):
                raise ValueError(f"{name} is {value}; it must be 1 or 2, and at most the number of {what} ({most})")
        self.expert_groups, self.group_size = groups, size
        self.top_groups, self.top_k = top_groups, inside
        self.group_weight = nn.Parameter(torch.zeros(groups, d_model))
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, inputs: RouterInput) -> Routing:
        x_TD, size = inputs.x_TD, self.group_size
        group_TA = F.linear(x_TD, self.group_weight).log_softmax(-1)
        within_TAB = F.linear(x_TD, self.weight).unflatten(-1, (self.expert_groups, size)).log_softmax(-1)
        # The logarithm of a distribution over all experts: its softmax is itself.
        joint_TE = (group_TA.unsqueeze(-1) + within_TAB).flatten(1)
        probs_TE = joint_TE.exp()
        expert_Tn, weight_Tn = choose_in_groups(group_TA.exp(), within_TAB.exp(), self.top_groups, self.top_k)
        losses = {"balance": balance_loss(probs_TE, expert_Tn, inputs.mask_T)}
        return Routing(TopK(expert_Tn, weight_Tn, self.num_experts), losses, joint_TE, probs_TE)


def choose_in_groups(group_TA: Tensor, within_TAB: Tensor, top_groups: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Ids and weights (T, a * k) of the k best experts in each of the a best groups, best first.

    group_TA: probabilities of the groups. within_TAB: those of the experts within their group.
    """
    tokens, _, size = within_TAB.shape
    chosen_Ta, gate_Ta = choose(group_TA, top_groups, renormalize=top_groups > 1)
    inside_TaB = within_TAB.gather(1, chosen_Ta.unsqueeze(-1).expand(-1, -1, size))
    expert_Nk, gate_Nk = choose(inside_TaB.flatten(0, 1), top_k, renormalize=top_k > 1)
    expert_Tak = expert_Nk.view(tokens, top_groups, top_k) + chosen_Ta.unsqueeze(-1) * size
    weight_Tak = gate_Nk.view(tokens, top_groups, top_k) * gate_Ta.unsqueeze(-1)
    # The best of the second group may weigh more than the second of the best.
    weight_Tn, order_Tn = weight_Tak.flatten(1).sort(dim=-1, descending=True, stable=True)
    return expert_Tak.flatten(1).gather(1, order_Tn), weight_Tn


def nearest_divisor(number: int, least: int = 1) -> int:
    """Of the divisors from `least` on, the nearest to the square root, the smaller of two; the number itself if none is."""
    divisors = [n for n in range(least, number) if n > 0 and number % n == 0] + [number]
    return min(divisors, key=lambda n: (abs(n - number**0.5), n))
