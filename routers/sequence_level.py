"""Routing of whole examples: all tokens of a group go to the same experts.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, k choices per group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.losses import balance_loss
from routelab.routers.plans import TopK
from routelab.routers.topk import check_top_k, choose


class Sequence(Router):
    """One choice for the whole example: top-k of softmax(m W^T), m the mean of the group's real tokens (D,).

    A choice between specialists that run in their entirety, as `topk` makes it for tokens (Jiang et al. 2024, Mixtral, §2.1);
    no paper is followed to the letter.

    Options: `top_k` (1: one specialist). `renormalize` (None): weights are divided by their sum; by default where
    `top_k` is above 1, since a single choice would get the weight 1 and leave the router without a gradient.
    `whole_model` (False): every layer chooses from its own input. True: the first mixture layer chooses, and the others take
    its choice and its weights, so that expert e of all layers is one specialist, or one adapter where experts are of low rank.
    `follows`: what an arm tells a layer that has a mixture before it; without `whole_model` it changes nothing.

    Loss: `balance` over the choices of the examples, each counted once whatever its length (weight 0.01), and once for all
    layers that share a choice. Parameters: `weight` (E, D), in no layer that takes another's choice. **Sees later tokens of the
    group**; not batch-coupled.
    """

    loss_weights = {"balance": 1e-2}

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        *,
        top_k: int = 1,
        renormalize: bool | None = None,
        whole_model: bool = False,
        follows: bool = False,
    ) -> None:
        super().__init__(d_model, num_experts)
        check_top_k(top_k, num_experts, sum_to_one=bool(renormalize), instead="set renormalize=False")
        self.top_k, self.renormalize = top_k, top_k > 1 if renormalize is None else renormalize
        self.whole_model, self.follows = whole_model, whole_model and follows
        if not self.follows:
            self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    @property
    def causal(self) -> bool:
        return False

    def forward(self, inputs: RouterInput) -> Routing:
        positions = inputs.x.shape[1]
        logits_GE = self._first_logits(inputs) if self.follows else F.linear(mean_of_real(inputs.x, inputs.mask), self.weight)
        probs_GE = logits_GE.softmax(-1)
        expert_Gk, weight_Gk = choose(probs_GE, self.top_k, self.renormalize)
        losses = {}
        if not self.follows:
            losses["balance"] = balance_loss(probs_GE, expert_Gk, None if inputs.mask is None else inputs.mask.any(1))
        expert_Tk, weight_Tk, logits_TE, probs_TE = (
            value.repeat_interleave(positions, 0) for value in (expert_Gk, weight_Gk, logits_GE, probs_GE)
        )
        return Routing(TopK(expert_Tk, weight_Tk, self.num_experts), losses, logits_TE, probs_TE)

    def _first_logits(self, inputs: RouterInput) -> Tensor:
        """The logits of the layer that chose, which all positions of a group share: (G, E)."""
        groups, positions, _ = inputs.x.shape
        if inputs.before is None or inputs.before.shape != (groups * positions, self.num_experts):
            found = "none" if inputs.before is None else f"logits of shape {tuple(inputs.before.shape)}"
            raise ValueError(
                f"a layer that takes the choice of the one before it got {found} from it; with whole_model=True both need "
                f"equal groups and {self.num_experts} experts"
            )
        return inputs.before.view(groups, positions, -1)[:, 0]


def mean_of_real(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the real positions of each group: x (G, S, D), mask (G, S) -> (G, D); 0 for a group without any."""
    if mask is None:
        return x.mean(1)
    real = mask.unsqueeze(-1)
    return x.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp_min(1)
