"""BASE: in training, tokens are shared out so that every expert gets equally many.

Axes: G groups, S positions, T = G * S tokens, D features, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.routers.balanced_assignment import balanced_assignment
from routelab.routers.balanced_in_training import BalancedInTraining
from routelab.routers.base import RouterInput, Routing
from routelab.routers.plans import TopK


class Base(BalancedInTraining):
    """Balanced assignment of tokens to experts, weighted by sigmoid(l[t, a_t]), l = x W^T (Lewis et al. 2021, §3, eq. 1-2).

    In training the real tokens of the batch are assigned so that sum_t l[t, a_t] is largest and the experts' sizes differ by
    at most one (`routelab.routers.balanced_assignment`). In evaluation each token takes its own best expert, so that no output hangs on
    the batch (§3.2.2). Loads are equal by construction: no auxiliary loss, no options.

    The assignment is exact and runs on the CPU in float64, where the paper uses an auction; a GPU waits for it.
    It takes about 10 ms for 2048 tokens and 8 experts at the start of training, and 0.15 s where all tokens share one
    favourite (one CPU core; a general solver took up to 4 s). That time is not in the FLOPs. In several processes each
    assigns its own tokens, as in the paper, which first shuffles the tokens among its workers; here they stay.
    The residual sum around the experts is the block's, and an expert is one feed-forward, not a stack of blocks.

    Parameters: `weight` (E, D). In training **sees later tokens** and is **batch-coupled**; in evaluation it is per token.
    """

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__(d_model, num_experts)

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        expert_T = assign(logits_TE, inputs.mask_T) if self.training else logits_TE.argmax(-1)
        expert_T1 = expert_T.unsqueeze(1)
        weight_T1 = logits_TE.gather(1, expert_T1).sigmoid()
        return Routing(TopK(expert_T1, weight_T1, self.num_experts), {}, logits_TE, logits_TE.softmax(-1))


@torch.no_grad()
def assign(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """The balanced assignment of the real tokens (T,) int64. logits (T, E), mask (T,); padding gets its favourite."""
    # A run that diverged should show in its loss, as with other routers, and not as an error of the solver.
    score = logits.detach().double().cpu().nan_to_num().clamp(-1e12, 1e12)
    expert = score.argmax(-1)
    real = torch.ones_like(expert, dtype=torch.bool) if mask is None else mask.cpu()
    expert[real] = torch.from_numpy(balanced_assignment(score[real].numpy()))
    return expert.to(logits.device)
