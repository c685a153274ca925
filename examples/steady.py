"""A router whose choices last, as a plugin in one file: what `routelab serve-cost` should find cheap to serve (docs/serving.md).

    routelab --plugin examples/steady.py train arm=steady data=domains data.window=128 backbone=decoder

Axes: G groups, S positions, T = G * S tokens, D features, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab import Router, RouterInput, Routing, TopK, register_router
from routelab.routers.losses import balance_loss, token_mean


@register_router("steady")
class Steady(Router):
    """Top-1 of softmax(x W^T), weighted by the raw probability as in Switch, and taught that neighbours agree.

    Losses: `balance` (weight 0.01), and `change` (weight 0.02): the probability that two neighbouring tokens, each drawing an
    expert from its own probabilities, draw different ones. Balance keeps choices from being the same everywhere, and loses
    where `change` weighs too much: at 0.1 two of eight experts get nearly all. No paper; an example.

    Parameters: `weight` (E, D). Causal, not batch-coupled, dropless.
    """

    loss_weights = {"balance": 1e-2, "change": 0.02}

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__(d_model, num_experts)
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, inputs: RouterInput) -> Routing:
        logits_GSE = F.linear(inputs.x, self.weight)
        logits_TE = logits_GSE.flatten(0, 1)
        probs_TE = logits_TE.softmax(-1)
        weight_T1, expert_T1 = probs_TE.topk(1, dim=-1)
        losses = {
            "balance": balance_loss(probs_TE, expert_T1, inputs.mask_T),
            "change": disagreement(logits_GSE.softmax(-1), inputs.mask),
        }
        return Routing(TopK(expert_T1, weight_T1, self.num_experts), losses, logits_TE, probs_TE)


def disagreement(probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over neighbouring real positions of 1 - sum_e p_e q_e; 0 where there are none. probs (G, S, E), mask (G, S)."""
    differ = 1 - (probs[:, 1:] * probs[:, :-1]).sum(-1)
    return token_mean(differ, None if mask is None else mask[:, 1:] & mask[:, :-1])
