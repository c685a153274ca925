"""Expert choice: each expert picks its tokens.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, C tokens per expert.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.capacity import capacity, capacity_tensor
from routelab.routers.plans import PerExpert, Plan, Ragged


class ExpertChoice(Router):
    """Each expert takes its C most probable tokens of a group, p = softmax over experts (Zhou et al. 2022, §3.2, eq. 1-2).

    C = ceil(capacity_factor * S / E), S being the real positions of the group. A token may be taken by 0 to E experts and
    is weighted by p[t, e], which is not renormalised. Every expert is equally loaded by construction: no auxiliary loss.

    Departure: the paper's tokens compete across the whole batch, sequences and all; here within a group or a position.

    Options: `capacity_factor` (2.0, as in the paper): mean experts per token. `across` ("sequence"): tokens compete within
    their group, so **a token's output depends on later tokens** and causal tasks refuse it. "batch": the G tokens at one
    position compete across the batch, C = ceil(capacity_factor * G / E), which sees no later token but couples the batch.

    Parameters: `weight` (E, D). "sequence" is neither causal nor batch-coupled, "batch" is both.
    """

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and the mean number of experts of a token."""
        return super().suggest(trial) | {"capacity_factor": trial.suggest_float("capacity_factor", 1.0, 4.0)}

    def __init__(
        self, d_model: int, num_experts: int, *, capacity_factor: float = 2.0, across: Literal["sequence", "batch"] = "sequence"
    ) -> None:
        super().__init__(d_model, num_experts)
        if not 0 < capacity_factor < math.inf:
            raise ValueError(f"capacity_factor is {capacity_factor}; it must be above 0 and finite")
        if across not in ("sequence", "batch"):
            raise ValueError(f"across is {across!r}; it must be 'sequence' or 'batch'")
        self.tokens_factor, self.across = capacity_factor, across
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    @property
    def causal(self) -> bool:
        return self.across == "batch"

    @property
    def batch_coupled(self) -> bool:
        return self.across == "batch"

    def forward(self, inputs: RouterInput) -> Routing:
        logits_GSE = F.linear(inputs.x, self.weight)
        probs_GSE = logits_GSE.softmax(-1)
        if self.across == "sequence":
            plan: Plan = take(probs_GSE, self.tokens_factor, inputs.mask)
        else:
            mask_SG = None if inputs.mask is None else inputs.mask.transpose(0, 1)
            plan = _from_positions(take(probs_GSE.transpose(0, 1), self.tokens_factor, mask_SG))
        return Routing(plan, {}, logits_GSE.flatten(0, 1), probs_GSE.flatten(0, 1))

    def nominal_rows(self, groups: int, positions: int) -> float:
        outer, inner = (groups, positions) if self.across == "sequence" else (positions, groups)
        return float(outer * self.num_experts * min(inner, capacity(self.tokens_factor, 1, inner, self.num_experts)))


def take(score_GSE: Tensor, factor: float, mask_GS: Tensor | None = None, weight_GSE: Tensor | None = None) -> PerExpert:
    """Every expert's C best positions in each group, best first. score (G, S, E) -> PerExpert with (G, E, C) fields.

    weight (G, S, E): what a position counts; None is its score. With a mask, padding is never taken, and a group with fewer real
    positions has a smaller C: its surplus places are switched off by `keep`.
    """
    _, positions, experts = score_GSE.shape
    places = min(positions, capacity(factor, 1, positions, experts))
    score_GES = score_GSE.transpose(1, 2)
    if mask_GS is not None:
        # Padding comes last, and its places are switched off below.
        score_GES = score_GES.masked_fill(~mask_GS.unsqueeze(1), -torch.inf)
    position = score_GES.topk(places, dim=-1).indices
    weight = (score_GSE if weight_GSE is None else weight_GSE).transpose(1, 2).gather(-1, position)
    if mask_GS is None:
        return PerExpert(position, weight, experts)
    room_G = torch.minimum(capacity_tensor(factor, 1, mask_GS.sum(1), experts), mask_GS.sum(1))
    keep = torch.arange(places, device=position.device).view(1, 1, -1) < room_G.view(-1, 1, 1)
    return PerExpert(position, weight * keep, experts, keep.expand_as(position))


def _from_positions(plan: PerExpert) -> Ragged:
    """A plan whose "groups" are positions and whose "positions" are groups, as flat assignments."""
    positions, experts, _ = plan.position.shape
    here = torch.arange(positions, device=plan.position.device).view(-1, 1, 1)
    expert = torch.arange(experts, device=plan.position.device).view(1, -1, 1).expand_as(plan.position)
    keep = None if plan.keep is None else plan.keep.reshape(-1)
    token = plan.position * positions + here
    return Ragged(token.reshape(-1), expert.reshape(-1), plan.weight.reshape(-1), experts, keep)
