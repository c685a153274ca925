"""Soft mixture of experts: experts see weighted averages of tokens.

Axes: G groups, S positions, D features, E experts, P slots per expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.core.flops import Cost, matmul
from routelab.routers.base import Router, RouterInput, Routing, truncated_normal_
from routelab.routers.plans import Slots


class Soft(Router):
    """Slots instead of choices (Puigcerver et al. 2023, §2.1, algorithm 1 and eq. 1-2; normalisation of §2.3).

    logits = scale * l2norm(x over D) . l2norm(phi over D); dispatch = softmax over the group's tokens for each slot,
    combine = softmax over all slots for each token. Experts see dispatch^T x with the raw x. Cost is set by the number
    of slots, not by the number of experts. Masked tokens are left out of both.

    Options: `slots_per_expert`: default so that E * P is near S, as in the paper's code, at least 1, where `positions` (S,
    offered by the backbone) says how many tokens a group has; 1 if it is unknown. No loss.

    Parameters: `phi` (D, E * P), drawn from N(0, 1/D), and `scale` (), which starts at 1. The paper's code draws phi from
    N(0, 1 / (D E)), of which normalising leaves the same.
    **Sees later tokens of the group**; not batch-coupled.
    """

    init_names: ClassVar[Mapping[str, str]] = {"phi": "phi", "scale": "scale"}

    published = ({"slots_per_expert": 1},)  # what the paper finds best: as many experts as slots

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and the number of slots."""
        return super().suggest(trial) | {"slots_per_expert": trial.suggest_categorical("slots_per_expert", [None, 1, 2])}

    def __init__(
        self, d_model: int, num_experts: int, *, slots_per_expert: int | None = None, positions: int | None = None
    ) -> None:
        super().__init__(d_model, num_experts)
        if slots_per_expert is None:
            slots_per_expert = max(1, round((positions or 1) / num_experts))
        if slots_per_expert < 1:
            raise ValueError(f"slots_per_expert is {slots_per_expert}; it must be at least 1")
        self.slots_per_expert = slots_per_expert
        self.phi = nn.Parameter(torch.zeros(d_model, num_experts * slots_per_expert))
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def causal(self) -> bool:
        return False

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        # The columns are normalised, so only their directions matter.
        truncated_normal_(self.phi, self.d_model**-0.5, generator("phi"))
        with torch.no_grad():
            self.scale.fill_(1.0)

    def forward(self, inputs: RouterInput) -> Routing:
        logits_GSK, dispatch_GSK, combine_GSK = soft_weights(inputs.x, self.phi, self.scale, inputs.mask)
        shape = (*inputs.x.shape[:2], self.num_experts, self.slots_per_expert)
        plan = Slots(dispatch_GSK.view(shape), combine_GSK.view(shape), self.num_experts)
        by_expert = combine_GSK.view(shape).sum(-1).flatten(0, 1)
        return Routing(plan, {}, logits_GSK.flatten(0, 1), by_expert)

    def nominal_rows(self, groups: int, positions: int) -> float:
        return float(groups * self.num_experts * self.slots_per_expert)

    def cost(self, groups: int, positions: int) -> Cost:
        return matmul(groups * positions, self.d_model, self.phi.shape[1])


def soft_weights(
    x: Tensor, phi: Tensor, scale: Tensor, mask: Tensor | None = None, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, dispatch and combine weights, each (G, S, K) for K slots. x (G, S, D), phi (D, K), mask (G, S)."""
    logits = F.normalize(x, dim=-1, eps=eps) @ (scale * F.normalize(phi, dim=0, eps=eps))
    if mask is None:
        return logits, logits.softmax(1), logits.softmax(-1)
    real = mask.unsqueeze(-1)
    # The lowest finite number, not -inf: a group without real tokens would otherwise give NaN.
    dispatch = logits.masked_fill(~real, torch.finfo(logits.dtype).min).softmax(1) * real
    return logits, dispatch, logits.softmax(-1) * real
