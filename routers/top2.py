"""Top-2 routing with capacity, as in GShard.

Axes: G groups, S positions, T = G * S tokens, D features, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import balance_loss
from routelab.routers.plans import TopK
from routelab.routers.topk import choose


class Top2(Router):
    """Top-2 of softmax(x W^T), renormalised over the pair (Lepikhin et al. 2020, GShard, algorithm 1).

    Options: `second_policy` ("random"): in training the second choice is kept if 2 g2 > U(0, 1), g2 being its
    renormalised weight; "all" always keeps it. Evaluation always does.

    Loss: `balance` on first choices (weight 0.01; algorithm 1 has their mean over experts, a factor E^2 less, and names no
    weight). Capacity factor 2.0 in training. All first choices are served before any second choice (priority "choice"),
    so under capacity **a later token can push out an earlier one**: the layer then declares the arm not causal.

    Departures: capacity counts both choices (`routelab.routers.capacity`), so that 2.0 leaves 4 T / E rows and the paper's 2 T / E
    are `capacity_factor=1`. A second choice left out takes no capacity, as in Mesh TensorFlow; in algorithm 1 it does.

    Parameters: `weight` (E, D). Without capacity causal and not batch-coupled.
    """

    loss_weights = {"balance": 1e-2}
    capacity_factor = 2.0
    priority = "choice"
    noiseless = {"second_policy": "all"}
    # The paper's, which does not count second choices.
    published: ClassVar[Sequence[Mapping[str, Any]]] = ({"capacity_factor": 1.0},)

    def __init__(self, d_model: int, num_experts: int, *, second_policy: Literal["random", "all"] = "random") -> None:
        super().__init__(d_model, num_experts)
        if num_experts < 2:
            raise ValueError(f"top2 chooses 2 experts, but there is {num_experts}; use at least 2")
        if second_policy not in ("random", "all"):
            raise ValueError(f"second_policy is {second_policy!r}; it must be 'random' or 'all'")
        self.second_policy = second_policy
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        probs_TE = logits_TE.softmax(-1)
        expert_T2, weight_T2 = choose(probs_TE, 2, renormalize=True)
        keep_T2 = None
        if self.training and self.second_policy == "random":
            second_T = 2 * weight_T2[:, 1].detach() > torch.rand_like(weight_T2[:, 1])
            keep_T2 = torch.stack([torch.ones_like(second_T), second_T], dim=1)
        losses = {"balance": balance_loss(probs_TE, expert_T2[:, 0], inputs.mask_T)}
        return Routing(TopK(expert_T2, weight_T2, self.num_experts, keep_T2), losses, logits_TE, probs_TE)

    def nominal_rows(self, groups: int, positions: int) -> float:
        return 2.0 * groups * positions
