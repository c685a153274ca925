"""gpt-oss routing: top-k of biased logits, weighted by a softmax over the chosen ones.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, k choices per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import balance_loss
from routelab.routers.plans import TopK
from routelab.routers.topk import check_top_k


class GptOss(Router):
    """Top-k of l = x W^T + b, weights softmax over the k chosen logits (OpenAI 2025, gpt-oss; `GptOssTopKRouter` of transformers).

    The bias is an ordinary parameter: it takes part in the choice and in the weights, and learns by gradient.

    Options: `top_k` (None: 4 as published, or all experts where there are fewer). One choice among several experts is
    refused, since its softmax is 1 and leaves the router without a gradient.
    Loss: `balance` over all k choices (weight 0.01, as for `topk`; the training recipe is not published). Dropless. The
    published model's expert is `clamped_swiglu` with biases, which is the expert's kind, not the router's.

    Parameters: `weight` (E, D), `bias` (E,), which starts at 0. Causal, not batch-coupled, per token.
    """

    init_names: ClassVar[Mapping[str, str]] = {"bias": "bias"}

    loss_weights = {"balance": 1e-2}
    tuned_top_k = (2,)

    def __init__(self, d_model: int, num_experts: int, *, top_k: int | None = None) -> None:
        super().__init__(d_model, num_experts)
        if top_k is None:
            top_k = min(4, num_experts)
        check_top_k(top_k, num_experts, sum_to_one=True)
        self.top_k = top_k
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))
        self.bias = nn.Parameter(torch.zeros(num_experts))

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        super().init_parameters(generator)
        with torch.no_grad():
            self.bias.zero_()

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight, self.bias)
        top_Tk, expert_Tk = logits_TE.topk(self.top_k, dim=-1)
        probs_TE = logits_TE.softmax(-1)
        losses = {"balance": balance_loss(probs_TE, expert_Tk, inputs.mask_T)}
        return Routing(TopK(expert_Tk, top_Tk.softmax(-1), self.num_experts), losses, logits_TE, probs_TE)
