"""Switch routing: one expert per token, scaled by its raw probability.

Axes: G groups, S positions, T = G * S tokens, D features, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing, truncated_normal_
from routelab.routers.losses import balance_loss, jitter
from routelab.routers.plans import TopK


class Switch(Router):
    """Top-1 of softmax(x W^T), weighted by the raw probability (Fedus, Zoph, Shazeer 2021, §2.1, eq. 2).

    The weight is never renormalised: with one choice that would make it 1 and the router's gradient exactly 0.

    Options: `jitter` (0.01): the router's input, and only that, is multiplied by U[1 - jitter, 1 + jitter] in training
    (appendix C, which names no amount; 0.01 is the default of the model in transformers).
    `init_scale` (None): the scale s of §2.4, where a weight starts at a normal with standard deviation sqrt(s / fan in),
    truncated at two deviations; the paper recommends 0.1, a tenth of the Transformer's 1. It scales the router's weight
    (fan in D; None: deviation 0.02 instead) and, in a routed arm, the weights of every feed-forward, experts and dense
    ones between them; attention and the rest of the backbone keep their own initial values.
    Loss: `balance` (weight 0.01; §2.2, eq. 4-6). Capacity factor 1.25 in training, one of those of the paper's table 1,
    first come first served by position. Departure: evaluation is dropless unless `eval_capacity_factor` is set, so that
    metrics do not depend on the batch size; Mesh TensorFlow, which the paper builds on, evaluates at 2.0 by default.

    Parameters: `weight` (E, D). Causal, not batch-coupled; capacity over the whole batch couples sequences.
    """

    loss_weights = {"balance": 1e-2}
    capacity_factor = 1.25
    noiseless = {"jitter": 0.0}
    # The others of the paper's table 1, and the scale that its §2.4 recommends.
    published = ({"capacity_factor": 1.0}, {"capacity_factor": 2.0}, {"init_scale": 0.1})

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and the scale of the initial values."""
        return super().suggest(trial) | {"init_scale": trial.suggest_categorical("init_scale", [None, 0.1])}

    def __init__(self, d_model: int, num_experts: int, *, jitter: float = 0.01, init_scale: float | None = None) -> None:
        super().__init__(d_model, num_experts)
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter is {jitter}; it must be at least 0 and below 1")
        if init_scale is not None and not 0 < init_scale < math.inf:
            raise ValueError(f"init_scale is {init_scale}; it must be above 0, or null for the usual deviation of 0.02")
        self.jitter, self.init_scale = jitter, init_scale
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        deviation = 0.02 if self.init_scale is None else (self.init_scale / self.d_model) ** 0.5
        truncated_normal_(self.weight, deviation, generator("weight"))

    def forward(self, inputs: RouterInput) -> Routing:
        x_TD = inputs.x_TD
        if self.training and self.jitter:
            x_TD = jitter(x_TD, self.jitter)
        logits_TE = F.linear(x_TD, self.weight)
        probs_TE = logits_TE.softmax(-1)
        weight_T1, expert_T1 = probs_TE.topk(1, dim=-1)
        losses = {"balance": balance_loss(probs_TE, expert_T1, inputs.mask_T)}
        return Routing(TopK(expert_T1, weight_T1, self.num_experts), losses, logits_TE, probs_TE)
