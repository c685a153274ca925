"""The dense gate: every expert on every token, blended by a softmax.

Axes: G groups, S positions, T = G * S tokens, D features, E experts.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.plans import Blend


class DenseGate(Router):
    """All experts, weighted by softmax(x W^T) (the gate of Jacobs, Jordan, Nowlan, Hinton 1991, as a layer in a network).

    It costs E times an expert and chooses nothing: the upper reference for what sparse choices give away at equal width.
    Where the paper's loss lets experts compete for each example, here the blended output goes on through the network.

    Options: none. No loss, no capacity. Parameters: `weight` (E, D). Causal, not batch-coupled, per token.
    """

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__(d_model, num_experts)
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        probs_TE = logits_TE.softmax(-1)
        return Routing(Blend(probs_TE, self.num_experts), {}, logits_TE, probs_TE)
