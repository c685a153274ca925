"""Cosine routing: tokens and experts are compared by angle in a space of few dimensions.

Axes: G groups, S positions, T = G * S tokens, D features, R routing dimensions, E experts, k choices per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import balance_loss
from routelab.routers.plans import TopK
from routelab.routers.topk import check_top_k

_START, _LOWEST = 0.07, 0.01


class Cosine(Router):
    """Top-k of l = cos(P x, M_e) / tau, weights softmax over the k chosen logits (Chi et al. 2022, X-MoE, §3.1).

    Angles on a low-dimensional hypersphere keep tokens from being drawn towards the experts' embeddings, which the paper
    names as the cause of collapsing representations. tau is learned, starts at 0.07 and is never below 0.01.

    Options: `top_k` (2). One choice among several experts is refused: its softmax is 1 and leaves the router no gradient.
    Loss: `balance` over all k choices of softmax(l) (weight 0.01). Dropless.
    R is min(E / 2, D) rounded down, but at least 8 (the paper: half the number of experts).

    Departures: the paper chooses one expert and weighs it by the softmax over all, or by a sigmoid (eq. 7). Its loss has a
    fixed temperature, 0.3 for softmax and 0.07 for sigmoid gates, where this one shares tau. tau has no bound there.

    Parameters: `project` P (R, D), `centroids` M (E, R), `temperature` tau (). Causal, not batch-coupled, per token.
    """

    init_names: ClassVar[Mapping[str, str]] = {"project": "project", "centroids": "centroids", "temperature": "temperature"}

    loss_weights = {"balance": 1e-2}

    def __init__(self, d_model: int, num_experts: int, *, top_k: int = 2) -> None:
        super().__init__(d_model, num_experts)
        check_top_k(top_k, num_experts, sum_to_one=True)
        self.top_k = top_k
        dimensions = max(8, min(num_experts // 2, d_model))
        self.project = nn.Parameter(torch.zeros(dimensions, d_model))
        self.centroids = nn.Parameter(torch.zeros(num_experts, dimensions))
        self.temperature = nn.Parameter(torch.tensor(_START))

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        super().init_parameters(generator)
        with torch.no_grad():
            self.temperature.fill_(_START)

    def forward(self, inputs: RouterInput) -> Routing:
        cosine_TE = cosine(F.linear(inputs.x_TD, self.project), self.centroids)
        logits_TE = cosine_TE / self.temperature.clamp_min(_LOWEST)
        top_Tk, expert_Tk = logits_TE.topk(self.top_k, dim=-1)
        probs_TE = logits_TE.softmax(-1)
        losses = {"balance": balance_loss(probs_TE, expert_Tk, inputs.mask_T)}
        return Routing(TopK(expert_Tk, top_Tk.softmax(-1), self.num_experts), losses, logits_TE, probs_TE)

    def update(self) -> None:
        # Below the bound the clamp has no gradient, and a temperature that stepped over it could never come back.
        with torch.no_grad():
            self.temperature.clamp_min_(_LOWEST)


def cosine(token: Tensor, expert: Tensor, eps: float = 1e-4) -> Tensor:
    """Cosines of (T, R) with (E, R): (T, E). A vector shorter than eps counts as having that length, so 0 gives 0."""
    return F.normalize(token, dim=-1, eps=eps) @ F.normalize(expert, dim=-1, eps=eps).t()
