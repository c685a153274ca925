"""Llama 4 routing: one expert per token, whose input is scaled by the sigmoid of its logit.

Axes: G groups, S positions, T = G * S tokens, D features, E experts.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import balance_loss
from routelab.routers.plans import TopK


class Llama4(Router):
    """Top-1 of l = x W^T; the expert sees sigmoid(l_e) x (Llama 4, Meta 2025; `Llama4TextMoe` of transformers).

    The weight multiplies the expert's **input**, so a nonlinear expert does not merely scale its answer. Shared experts: 1 in an
    arm, as published, unless `experts.shared` says otherwise.

    Options: none. Loss: `balance` (weight 0.001, the coefficient of the published configuration) on softmax(l), which is
    used for nothing else; how Meta balanced its experts in training is not published. Dropless.

    Parameters: `weight` (E, D); from the output, a row learns only from the tokens that chose its expert. Causal, not
    batch-coupled, per token.
    """

    loss_weights = {"balance": 1e-3}
    shared_experts = 1

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__(d_model, num_experts)
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        top_T1, expert_T1 = logits_TE.topk(1, dim=-1)
        probs_TE = logits_TE.softmax(-1)
        losses = {"balance": balance_loss(probs_TE, expert_T1, inputs.mask_T)}
        plan = TopK(expert_T1, top_T1.sigmoid(), self.num_experts, weight_on="input")
        return Routing(plan, losses, logits_TE, probs_TE)
