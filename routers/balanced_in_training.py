"""Routers that share out the tokens of a batch in training, and let each token choose for itself in evaluation.

Axes: G groups, S positions, D features, E experts.
"""

from __future__ import annotations

import torch
from torch import nn

from routelab.core.flops import Cost, matmul
from routelab.routers.base import Router
from routelab.routers.topk import check_top_k


class BalancedInTraining(Router):
    """Scores x W^T; `forward` balances the choices over all real tokens of the batch while training.

    top_k: experts of a token. Parameters: `weight` (E, D). In training **sees later tokens** and is **batch-coupled**; in
    evaluation it is per token.
    """

    def __init__(self, d_model: int, num_experts: int, top_k: int = 1) -> None:
        super().__init__(d_model, num_experts)
        check_top_k(top_k, num_experts)
        self.top_k = top_k
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    @property
    def causal(self) -> bool:
        return False

    @property
    def batch_coupled(self) -> bool:
        return True

    @property
    def per_token(self) -> bool:
        return True

    def cost(self, groups: int, positions: int) -> Cost:
        return matmul(groups * positions, self.d_model, self.num_experts)

    def nominal_rows(self, groups: int, positions: int) -> float:
        return float(groups * positions * self.top_k)
