"""Token-choice top-k routing without capacity, as in Mixtral and OLMoE.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, k choices per token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import balance_loss
from routelab.routers.plans import TopK


def choose(probs_TE: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The k most probable experts, best first: ids (T, k) and weights (T, k), summing to 1 if renormalised."""
    weight_Tk, expert_Tk = probs_TE.topk(k, dim=-1)
    if renormalize:
        weight_Tk = weight_Tk / weight_Tk.sum(-1, keepdim=True)
    return expert_Tk, weight_Tk


def check_top_k(top_k: int, num_experts: int, *, sum_to_one: bool = False, instead: str = "it must be at least 2") -> None:
    """ValueError unless a token can choose `top_k` of the experts.

    sum_to_one: the weights of a token's choices do. A single one among several experts would always weigh 1 and leave the
    router without a gradient, so it is refused. instead: what else to do then.
    """
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k is {top_k}; it must be between 1 and the number of experts ({num_experts})")
    if top_k == 1 and sum_to_one and num_experts > 1:
        raise ValueError(f"top_k=1 gives every token the weight 1 and the router no gradient; {instead}")


class TopKRouter(Router):
    """Top-k of softmax(x W^T), dropless (Jiang et al. 2024, Mixtral, §2.1; Muennighoff et al. 2024, OLMoE).

    Options: `top_k` (2); `renormalize` (True): weights are divided by their sum, which equals a softmax over the k
    selected logits (Mixtral); False keeps the raw probabilities (OLMoE). With `top_k=1` renormalising is refused, since
    it would leave the router without a gradient.

    Loss: `balance` over all k choices (weight 0.01, OLMoE's; transformers' loss is k times this one). Parameters: `weight`
    (E, D). Causal, not batch-coupled.
    """

    loss_weights = {"balance": 1e-2}

    def __init__(self, d_model: int, num_experts: int, *, top_k: int = 2, renormalize: bool = True) -> None:
        super().__init__(d_model, num_experts)
        check_top_k(top_k, num_experts, sum_to_one=renormalize, instead="set renormalize=False")
        self.top_k, self.renormalize = top_k, renormalize
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        probs_TE = logits_TE.softmax(-1)
        expert_Tk, weight_Tk = choose(probs_TE, self.top_k, self.renormalize)
        losses = {"balance": balance_loss(probs_TE, expert_Tk, inputs.mask_T)}
        return Routing(TopK(expert_Tk, weight_Tk, self.num_experts), losses, logits_TE, probs_TE)
