"""A router that clusters: centroids follow their tokens, and no gradient chooses an expert.

Axes: G groups, S positions, T = G * S tokens, D features, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab import Router, RouterInput, Routing, TopK
from routelab.routers.base import truncated_normal_


class ConscienceRouter(Router):
    """Each token goes to the nearest centroid that has not won too often: online k-means with a conscience (DeSieno 1988).

    Expert e scores cos(x, c_e) - strength * (E * share_e - 1), the best score wins, and the winner's output counts whole. Once
    per optimizer step each centroid turns towards the mean direction of the tokens that it won, by `rate`, and share_e, the
    running share of tokens that e wins, by as much: an expert that wins twice its due is held back by `strength`. Routing by
    clusters is also in Roy et al. 2021 (Routing Transformer) and Roller et al. 2021 (Hash Layers). Departs from DeSieno in
    that distances are angles and that the centroids learn from batches.

    Options: `strength` (0.3; 0 is plain k-means). `rate` (0.05).
    Losses: none. Buffers, float32: `centroid` (E, D) of length 1, `share` (E,), and what the running step has counted,
    `count` (E,) and `sum` (E, D). Parameters: none, so the experts' gradient is all the gradient there is. Dropless.
    Causal, not batch-coupled: a forward pass reads the buffers of the steps before it.
    """

    counts = ("count", "sum")

    centroid: Tensor
    share: Tensor
    count: Tensor
    sum: Tensor

    def __init__(self, d_model: int, num_experts: int, *, strength: float = 0.3, rate: float = 0.05) -> None:
        super().__init__(d_model, num_experts)
        if not strength >= 0:
            raise ValueError(f"strength is {strength}; it must be at least 0")
        if not 0 < rate <= 1:
            raise ValueError(f"rate is {rate}; it must be above 0 and at most 1")
        self.strength, self.rate = strength, rate
        self.register_buffer("centroid", torch.zeros(num_experts, d_model))
        self.register_buffer("share", torch.full((num_experts,), 1 / num_experts))
        self.register_buffer("count", torch.zeros(num_experts))
        self.register_buffer("sum", torch.zeros(num_experts, d_model))

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        truncated_normal_(self.centroid, 1.0, generator("centroid"))
        self.centroid.copy_(F.normalize(self.centroid, dim=-1))

    def forward(self, inputs: RouterInput) -> Routing:
        direction_TD = F.normalize(inputs.x_TD.detach(), dim=-1)
        score_TE = F.linear(direction_TD, self.centroid) - self.strength * (self.num_experts * self.share - 1)
        expert_T1 = score_TE.argmax(-1, keepdim=True)
        if self.training and torch.is_grad_enabled():
            self._count(direction_TD, expert_T1.squeeze(1), inputs.mask_T)
        weight_T1 = torch.ones_like(score_TE[:, :1])
        return Routing(TopK(expert_T1, weight_T1, self.num_experts), logits=score_TE, probs=score_TE.softmax(-1))

    def _count(self, direction_TD: Tensor, expert_T: Tensor, mask_T: Tensor | None) -> None:
        real_T = torch.ones_like(direction_TD[:, 0]) if mask_T is None else mask_T.to(direction_TD.dtype)
        self.count.index_add_(0, expert_T, real_T)
        self.sum.index_add_(0, expert_T, direction_TD * real_T.unsqueeze(1))

    def update(self) -> None:
        """Turn the centroids towards what they won in this step, and move the shares; an expert that won nothing stays."""
        won_E1 = (self.count > 0).unsqueeze(1)
        towards_ED = torch.where(won_E1, F.normalize(self.sum, dim=-1), self.centroid)
        self.centroid.copy_(F.normalize(torch.lerp(self.centroid, towards_ED, self.rate), dim=-1))
        if self.strength:
            tokens = self.count.sum()
            self.share.lerp_(torch.where(tokens > 0, self.count / tokens.clamp_min(1), self.share), self.rate)
        self.count.zero_()
        self.sum.zero_()

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        return {
            "strength": trial.suggest_float("strength", 0.01, 3.0, log=True),
            "rate": trial.suggest_float("rate", 0.005, 0.5, log=True),
        }
