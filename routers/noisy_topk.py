"""Noisy top-k gating: the first sparsely gated mixture of experts.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, k choices per token.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import importance_loss, load_loss
from routelab.routers.plans import TopK


class NoisyTopK(Router):
    """Top-k of x W^T + N(0, 1) softplus(x W_noise^T), softmax over the kept k (Shazeer et al. 2017, §2.1, eq. 3-5).

    The noise is drawn for each token and expert, in training only. Both weights start at 0, as in the paper's appendix A,
    so that at first the noise alone chooses and the load is near balance.

    Options: `top_k` (2; the paper 4 in its flat language models, 2 in multilingual translation), below the number of
    experts, as the load loss needs a choice that was not made; with 1 the
    weight is always 1 and the output gives the router no gradient (a warning). `noise` (True): False leaves the noise
    out, while its deviation still smooths the load loss.

    Losses: `importance`, CV^2 of the experts' summed weights, and `load`, CV^2 of a smooth count of their tokens (weights
    0.1 each, as in appendix C; §4 and appendix A, eq. 6-11). In evaluation the load is taken around the logits without noise.

    Departures: deviations below 1e-6 count as 1e-6 in the load loss, which divides by them.
    Parameters: `weight` (E, D), `noise_weight` (E, D). Dropless. Causal, not batch-coupled.
    """

    init_names: ClassVar[Mapping[str, str]] = {"noise_weight": "noise_weight"}

    loss_weights = {"importance": 0.1, "load": 0.1}
    noiseless = {"noise": False}
    tuned_top_k = (3,)  # below the 4 experts that a sweep may take

    def __init__(self, d_model: int, num_experts: int, *, top_k: int = 2, noise: bool = True) -> None:
        super().__init__(d_model, num_experts)
        if not 1 <= top_k < num_experts:
            raise ValueError(f"top_k is {top_k}; it must be at least 1 and below the number of experts ({num_experts})")
        if top_k == 1:
            warnings.warn(
                "router 'noisy_topk' with top_k=1 gives every token the weight 1 and the router no gradient from the output",
                stacklevel=2,
            )
        self.top_k, self.noise = top_k, noise
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))
        self.noise_weight = nn.Parameter(torch.zeros(num_experts, d_model))

    @property
    def untrained(self) -> tuple[str, ...]:
        if self.top_k == 1:
            return ("weight", "noise_weight")
        return () if self.noise else ("noise_weight",)

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        with torch.no_grad():
            self.weight.zero_()
            self.noise_weight.zero_()

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        deviation_TE = F.softplus(F.linear(inputs.x_TD, self.noise_weight))
        noisy_TE = logits_TE
        if self.training and self.noise:
            noisy_TE = logits_TE + torch.randn_like(logits_TE) * deviation_TE
        kept_Tk, expert_Tk = noisy_TE.topk(self.top_k, dim=-1)
        weight_Tk = kept_Tk.softmax(-1)
        losses = {
            "importance": importance_loss(weight_Tk, expert_Tk, self.num_experts, inputs.mask_T),
            "load": load_loss(logits_TE, noisy_TE, deviation_TE, self.top_k, inputs.mask_T),
        }
        return Routing(TopK(expert_Tk, weight_Tk, self.num_experts), losses, logits_TE, noisy_TE.softmax(-1))
