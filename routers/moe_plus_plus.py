"""MoE++: top-k over real and zero-compute experts, with a memory of the layer before.

Axes: T tokens, D features, E experts of both sorts, F zero-compute ones (the last), k choices per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import balance_loss
from routelab.routers.plans import TopK
from routelab.routers.topk import check_top_k, choose


class MoEPlusPlus(Router):
    """Top-k of softmax(x W^T + r R^T) over real and zero-compute experts (Jin et al. 2024, MoE++, §3, eq. 6).

    r are the logits of the layer before ("gating residual"; none in the first). Weights are the raw probabilities. A real
    expert is meant to take tau times the tokens of a zero-compute one: its part of all choices is tau / (tau (E - F) + F).
    Balance loss (1 where every expert has its part), capacity and nominal FLOPs go by these parts; what a run is charged for is
    what its tokens chose, so that a model that learns to skip is cheaper than its nominal figure.

    Options: `top_k` (2). `tau` (0.75): the smaller, the more goes to zero-compute experts. `renormalize` (False): weights that
    sum to 1. `zero_compute` (0): F; an arm passes it. `follows` (False): there is a layer before; an arm passes it, and
    `router.follows=false` does without the residual.
    Loss: `balance` (weight 0.01). Capacity factor 1.1 in training. In an arm 1 zero, 1 copy and max(E_real / 4 - 2, 1) constant
    experts (eq. 10; the paper's own model of 8 real ones has 2) stand beside `experts.count` real ones; `experts.zero`,
    `experts.copy` and `experts.constant` override that.

    The defaults are the paper's (§4.1, §4.3 and appendix B.2); its loss and its capacity are eq. 7 and 8.
    Departures: the paper's loss is sum_e eta_e f_e P_e with eta = 1 for real experts and tau for the others; this one is a
    constant times that. Capacity counts k choices per token, eq. 8 one. The published code (SkyworkAI/MoE-plus-plus)
    renormalises weights without that of the zero expert and multiplies the layer's input by k, and its W has two layers with
    a tanh between; here W is one matrix, as in eq. 6.

    Parameters: `weight` (E, D); `residual` (E, E) if it follows a layer. Causal; not batch-coupled but for its capacity.
    """

    init_names: ClassVar[Mapping[str, str]] = {"residual": "residual"}

    loss_weights = {"balance": 1e-2}
    capacity_factor = 1.1

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and what goes to experts that compute."""
        return super().suggest(trial) | {"tau": trial.suggest_float("tau", 0.1, 1.0)}

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        *,
        top_k: int = 2,
        tau: float = 0.75,
        renormalize: bool = False,
        zero_compute: int = 0,
        follows: bool = False,
    ) -> None:
        super().__init__(d_model, num_experts)
        check_top_k(top_k, num_experts, sum_to_one=renormalize, instead="set renormalize=False")
        if not 0 < tau <= 1:
            raise ValueError(f"tau is {tau}; it must be above 0 and at most 1")
        if not 0 <= zero_compute < num_experts:
            raise ValueError(f"zero_compute is {zero_compute}; it must be at least 0 and below the {num_experts} experts")
        self.top_k, self.tau, self.renormalize, self.follows = top_k, tau, renormalize, follows
        self.zero_compute: int = zero_compute
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))
        if follows:
            self.residual = nn.Parameter(torch.zeros(num_experts, num_experts))

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        if self.follows and inputs.before is not None:
            if inputs.before.shape != logits_TE.shape:
                raise ValueError(
                    f"the layer before has logits of shape {tuple(inputs.before.shape)}, this one {tuple(logits_TE.shape)}; "
                    "a gating residual needs equal ones"
                )
            logits_TE = logits_TE + F.linear(inputs.before, self.residual)
        probs_TE = logits_TE.softmax(-1)
        expert_Tk, weight_Tk = choose(probs_TE, self.top_k, self.renormalize)
        losses = {"balance": balance_loss(probs_TE, expert_Tk, inputs.mask_T, self.shares(probs_TE.device))}
        return Routing(TopK(expert_Tk, weight_Tk, self.num_experts), losses, logits_TE, probs_TE)

    def shares(self, device: torch.device) -> Tensor:
        real = self.num_experts - self.zero_compute
        parts = torch.full((self.num_experts,), 1.0, dtype=torch.float64, device=device)
        parts[:real] = self.tau
        return parts / (self.tau * real + self.zero_compute)

    @classmethod
    def zero_compute_kinds(cls, num_experts: int) -> Mapping[str, int]:
        return {"zero": 1, "copy": 1, "constant": max(num_experts // 4 - 2, 1)}
