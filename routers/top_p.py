"""Top-p routing: a token takes as many experts as it needs to be sure enough.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, N assignments.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.core.collectives import sharing, total
from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import token_mean
from routelab.routers.plans import sets


class TopP(Router):
    """The fewest experts whose softmax(x W^T) adds up to at least p (Huang et al. 2024, Harder Tasks Need More Experts).

    A confident router takes one expert, a uniform one ceil(p E).

    Options: `p` (0.4, as in the published code). `renormalize` (False, as there): divide the weights by their sum; a token
    with one expert then has the weight 1 and teaches the router nothing through the output. `nominal_k` (None): experts per
    token that nominal FLOPs, and so matching, assume; None is ceil(p E), the most that a token can take, which is also where
    training starts.
    Losses: `entropy`, the mean entropy of the softmax in nats (weight 1e-4), which pulls towards fewer experts, and
    `balance` over the choices made (weight 0.01), the paper's second loss. Dropless; capacity, if set, counts choices
    really made. On a GPU, which nothing waits for, ceil(p E) + 1 entries per token are laid out, and those without a choice
    computed by no product.

    Parameters: `weight` (E, D). Causal, not batch-coupled, per token.
    """

    dynamic = True
    loss_weights = {"entropy": 1e-4, "balance": 1e-2}

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and the mass p."""
        return super().suggest(trial) | {"p": trial.suggest_float("p", 0.2, 0.6)}

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        *,
        p: float = 0.4,
        renormalize: bool = False,
        nominal_k: float | None = None,
    ) -> None:
        super().__init__(d_model, num_experts)
        if not 0 < p <= 1:
            raise ValueError(f"p is {p}; it must be above 0 and at most 1")
        if nominal_k is not None and not 1 <= nominal_k <= num_experts:
            raise ValueError(f"nominal_k is {nominal_k}; it must be between 1 and the number of experts ({num_experts})")
        self.p, self.renormalize = p, renormalize
        self.nominal_k = math.ceil(p * num_experts) if nominal_k is None else nominal_k
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        probs_TE = logits_TE.softmax(-1)
        chosen_TE = smallest_set(probs_TE, self.p)
        weight_TE = probs_TE
        if self.renormalize:
            weight_TE = probs_TE / (probs_TE * chosen_TE).sum(-1, keepdim=True)
        losses = {
            "entropy": mean_entropy(logits_TE, inputs.mask_T),
            "balance": balance_of_sets(probs_TE, chosen_TE, inputs.mask_T),
        }
        # Of E probabilities the n largest hold at least n / E, and rounding may ask for one more.
        plan = sets(chosen_TE, weight_TE, most=math.ceil(self.p * self.num_experts) + 1)
        return Routing(plan, losses, logits_TE, probs_TE)

    def nominal_rows(self, groups: int, positions: int) -> float:
        return float(groups * positions * self.nominal_k)


def smallest_set(probs: Tensor, p: float) -> Tensor:
    """Which experts are in each token's smallest set of mass p or more: (T, E) bool. Never empty. probs (T, E)."""
    sorted_TE, order_TE = probs.detach().sort(dim=-1, descending=True, stable=True)
    # An expert is in if those before it do not reach p: the one that crosses p belongs to the set.
    before_TE = sorted_TE.cumsum(-1).roll(1, -1)
    before_TE[:, 0] = 0
    return torch.zeros_like(probs, dtype=torch.bool).scatter_(1, order_TE, before_TE < p)


def mean_entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean entropy of softmax(logits) over real tokens, in nats (Huang 2024, the dynamic loss). logits (T, E)."""
    log_probs = logits.log_softmax(-1)
    return token_mean(-(log_probs.exp() * log_probs).sum(-1), mask)


def balance_of_sets(probs: Tensor, chosen: Tensor, mask: Tensor | None = None) -> Tensor:
    """`routelab.routers.losses.balance_loss` for sets of any size: E * sum_e f_e * P_e, f_e being the share of all choices made.

    probs (T, E); chosen (T, E) bool. Perfect balance gives 1.
    """
    real_T = torch.ones_like(probs[:, 0]) if mask is None else mask.to(probs.dtype)
    count_E = total(real_T @ chosen.to(probs.dtype))
    mean_E = (real_T @ probs) / total(real_T.sum()).clamp_min(1)
    return sharing() * probs.shape[1] * torch.dot(count_E / count_E.sum().clamp_min(1), mean_E)
