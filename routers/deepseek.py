"""DeepSeek-V3: sigmoid scores, and a bias instead of a loss to balance the load.

Axes: G groups of tokens, S positions, T = G * S tokens, D features, E experts, k choices per token, N groups of experts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import sequence_balance_loss
from routelab.routers.plans import TopK


def within_groups(score_TE: Tensor, groups: int, best: int) -> Tensor:
    """Scores with -inf outside each token's `best` groups of neighbouring experts; a group counts the sum of its top two.

    (T, E) -> (T, E). "Node-limited routing" (DeepSeek-AI 2024, DeepSeek-V3, §2.1.2): the paper sums the best K / M of a node,
    which is two for its 8 choices on 4 nodes, and transformers two whatever they are.
    """
    tokens, experts = score_TE.shape
    score_TNe = score_TE.view(tokens, groups, experts // groups)
    chosen_Tb = score_TNe.topk(2, dim=-1).values.sum(-1).topk(best, dim=-1).indices
    open_TN = torch.zeros(tokens, groups, dtype=torch.bool, device=score_TE.device).scatter_(1, chosen_Tb, True)
    return score_TNe.masked_fill(~open_TN.unsqueeze(-1), -torch.inf).view(tokens, experts)


class DeepSeek(Router):
    """Top-k of sigmoid(x W^T) + b, weighted without b (DeepSeek-AI 2024, DeepSeek-V3, §2.1.2, eq. 12-20).

    With s = sigmoid(x W^T), the chosen experts are the top k of s + b, and the weights scale * s / (sum of the chosen s +
    1e-20). After each optimizer step b_e rises by `bias_speed` if expert e had less than the mean load, and falls by it if
    it had more (Wang et al. 2024, auxiliary-loss-free load balancing). b takes no gradient. Loads are counted in training
    only, on real tokens before any is dropped, over all micro-batches and processes of the step.

    Options: `top_k` (2; V3: 8 of 256). `n_group` (1; V3: 8) and `topk_group` (1; V3: 4): experts are chosen among the
    best `topk_group` of `n_group` equal groups of neighbours, of at least 2 experts each. `scale` (2.5). `bias_speed`
    (0.001; V3 sets 0 for the last 0.5 of 14.8 T tokens, which is not done here).

    Loss: `balance` within each sequence (weight 0.0001), on the top k of s without bias or groups, as eq. 18 says.
    Shared experts: 1 in an arm, unless `experts.shared` says otherwise.
    Parameters: `weight` (E, D). Buffers, float32: `bias` (E,), `load` (E,). Dropless. Causal, not batch-coupled (the
    bias carries loads from one step to the next, never within a batch).
    """

    loss_weights = {"balance": 1e-4}
    counts = ("load",)
    shared_experts = 1

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and the bias's step and the weights' scale."""
        return super().suggest(trial) | {
            "bias_speed": trial.suggest_float("bias_speed", 1e-4, 1e-2, log=True),
            "scale": trial.suggest_float("scale", 1.0, 5.0, log=True),
        }

    bias: Tensor
    load: Tensor

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        *,
        top_k: int = 2,
        n_group: int = 1,
        topk_group: int = 1,
        scale: float = 2.5,
        bias_speed: float = 1e-3,
    ) -> None:
        super().__init__(d_model, num_experts)
        if n_group < 1 or num_experts % n_group or (n_group > 1 and num_experts // n_group < 2):
            raise ValueError(f"n_group is {n_group}; it must divide the {num_experts} experts into groups of at least 2")
        if not 1 <= topk_group <= n_group:
            raise ValueError(f"topk_group is {topk_group}; it must be between 1 and n_group ({n_group})")
        open_to_a_token = num_experts // n_group * topk_group
        if not 1 <= top_k <= open_to_a_token:
            raise ValueError(f"top_k is {top_k}; it must be between 1 and the experts in {topk_group} of {n_group} groups "
                             f"({open_to_a_token})")  # fmt: skip
        if top_k == 1 and num_experts > 1:
            raise ValueError("top_k=1 gives every token the same weight and the router no gradient; set top_k to 2 or more")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}; it must be above 0 and finite")
        if not 0 <= bias_speed < math.inf:
            raise ValueError(f"bias_speed is {bias_speed}; it must be at least 0 and finite")
        self.top_k, self.n_group, self.topk_group, self.scale, self.bias_speed = top_k, n_group, topk_group, scale, bias_speed
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))
        self.register_buffer("bias", torch.zeros(num_experts, dtype=torch.float32))
        self.register_buffer("load", torch.zeros(num_experts, dtype=torch.float32))

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        score_TE = logits_TE.sigmoid()
        biased_TE = score_TE.detach() + self.bias
        if self.topk_group < self.n_group:
            biased_TE = within_groups(biased_TE, self.n_group, self.topk_group)
        expert_Tk = biased_TE.topk(self.top_k, dim=-1).indices
        chosen_Tk = score_TE.gather(1, expert_Tk)
        weight_Tk = chosen_Tk / (chosen_Tk.sum(-1, keepdim=True) + 1e-20) * self.scale
        if self.training and torch.is_grad_enabled():
            self._count(expert_Tk, inputs.mask_T)
        share_TE = score_TE / (score_TE.sum(-1, keepdim=True) + 1e-20)
        shape = inputs.x.shape[:2]
        unbiased_Tk = score_TE.topk(self.top_k, dim=-1).indices
        balance = sequence_balance_loss(share_TE.unflatten(0, shape), unbiased_Tk.unflatten(0, shape), inputs.mask)
        return Routing(TopK(expert_Tk, weight_Tk, self.num_experts), {"balance": balance}, logits_TE, share_TE)

    def update(self) -> None:
        with torch.no_grad():
            self.bias += self.bias_speed * torch.sign(self.load.mean() - self.load)
            self.load.zero_()

    def _count(self, expert_Tk: Tensor, mask_T: Tensor | None) -> None:
        real_Tk = torch.ones_like(expert_Tk, dtype=torch.float32)
        if mask_T is not None:
            real_Tk = real_Tk * mask_T.unsqueeze(1)
        with torch.no_grad():
            self.load.index_add_(0, expert_Tk.flatten(), real_Tk.flatten())
