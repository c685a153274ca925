"""Sinkhorn routing: choices from scores that are normalised so that every expert's share is equal.

Axes: G groups, S positions, T = G * S tokens, N of them real, D features, E experts, k choices per token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.routers.balanced_in_training import BalancedInTraining
from routelab.routers.base import RouterInput, Routing
from routelab.routers.plans import TopK


class Sinkhorn(BalancedInTraining):
    """Top-k of the Sinkhorn-normalised exp(l / tau) in training, l = x W^T (Clark et al. 2022, S-BASE).

    The plan over the real tokens of the batch has row sums 1 and column sums N / E, approximately: choices are nearly
    balanced, not exactly as in `base`. It carries no gradient. In evaluation the k largest logits are taken as they are, so
    that no output hangs on the batch. The weight comes from the unnormalised logits in both: their sigmoid for k = 1, their
    softmax over all experts, not renormalised, for k > 1, as in Megatron-LM's Sinkhorn router. No auxiliary loss.

    Options: `top_k` (1); `tau` (1.0): the temperature; `iterations` (100): the most steps, which end when no row sum changes
    by as much as 1e-4 from one to the next (Megatron-LM looks at the columns' factors; a GPU, not to be waited for, takes all and changes nothing).
    In several processes each normalises its own tokens.

    Parameters: `weight` (E, D). In training **sees later tokens** and is **batch-coupled**; in evaluation it is per token.
    """

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and the temperature."""
        return super().suggest(trial) | {"tau": trial.suggest_float("tau", 0.1, 10.0, log=True)}

    def __init__(self, d_model: int, num_experts: int, *, top_k: int = 1, tau: float = 1.0, iterations: int = 100) -> None:
        super().__init__(d_model, num_experts, top_k)
        if not 0 < tau < math.inf:
            raise ValueError(f"tau is {tau}; it must be above 0")
        if iterations < 1:
            raise ValueError(f"iterations is {iterations}; it must be at least 1")
        self.tau, self.iterations = tau, iterations

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        probs_TE = logits_TE.softmax(-1)
        score_TE = logits_TE.detach()
        if self.training:
            score_TE = score_TE / self.tau
            # A row's own factor changes no choice within the row, so the columns' factors are all that is needed.
            score_TE = score_TE + column_potentials(score_TE, self.iterations, mask=inputs.mask_T)
        expert_Tk = score_TE.topk(self.top_k, dim=-1).indices
        weight_Tk = (logits_TE.sigmoid() if self.top_k == 1 else probs_TE).gather(1, expert_Tk)
        return Routing(TopK(expert_Tk, weight_Tk, self.num_experts), {}, logits_TE, probs_TE)


@torch.no_grad()
def column_potentials(score: Tensor, iterations: int = 100, tolerance: float = 1e-4, mask: Tensor | None = None) -> Tensor:
    """log v (E,) of the Sinkhorn plan u exp(score) v with row sums 1 and column sums N / E; 0 without real tokens.

    score (T, E), in logarithms; mask (T,), True for the N real tokens, whose rows alone are in the plan. One step scales the
    rows, then the columns; it is the last when no row sum, taken after it, changed by `tolerance`.
    """
    tokens, experts = score.shape
    real = torch.ones(tokens, dtype=torch.bool, device=score.device) if mask is None else mask
    # Sums to which rows and columns are scaled, in logarithms. Rows left out rather than picked: how many they are, a GPU
    # would have to be waited for.
    of_row = torch.zeros_like(score[:, :1]).masked_fill(~real.unsqueeze(1), -torch.inf)
    of_column = (real.sum().to(score.dtype) / experts).log()
    column = torch.zeros_like(score[0])
    before = torch.full_like(score[:, 0], torch.inf)
    done = ~real.any()
    for _ in range(iterations):
        row = of_row - torch.logsumexp(score + column, dim=1, keepdim=True)
        # Done, a GPU goes on with what it has: asking whether it is would make the host wait at every step.
        column = torch.where(done, column, of_column - torch.logsumexp(score + row, dim=0))
        sums = torch.logsumexp(score + row + column, dim=1).exp()
        done = done | ((sums - before).abs().max() < tolerance)
        if done.device.type == "cpu" and bool(done):
            break
        before = sums
    return column
