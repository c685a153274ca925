"""Mixture of depths: the best tokens of a sequence go through a block, the others pass it by.

Axes: G groups, S positions, T = G * S tokens, D features, E experts (of which an arm has one, the block), C tokens per
expert and group, H hidden width of the predictor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.capacity import capacity as room
from routelab.routers.expert_choice import take
from routelab.routers.losses import token_mean
from routelab.routers.plans import PerExpert, share_TE


class MixtureOfDepths(Router):
    """The C best tokens of each group by l = x W^T, C = ceil(capacity * S), weighted by l (Raposo et al. 2024, eq. 1).

    In an arm the one expert is the whole block, attention and feed-forward: the chosen attend to one another only, in their
    order and at their own positions, l times what the block adds to them is added to the residual stream, and the rest skip
    it (`routelab.backbones.mixture_of_depths_block`). In a plain mixture layer each expert takes the C tokens of its own best logits.

    The best of a sequence are not known before it ends, so **training sees later tokens**: whether a token is chosen, and
    which of its forerunners it may attend to. Evaluation need not, by either way of the paper's §3.5, which gives no
    weight for its loss:

    - `predictor="router"` (default): a binary cross-entropy on l, whose targets are the choices, moves l above 0 for tokens
      that are chosen and below 0 for others; evaluation takes the tokens with l > 0. It also moves the weights.
    - `predictor="mlp"`: the same loss on a small network beside the router, which reads x without passing a gradient to it.
    - `predictor=None`: evaluation chooses as training does and sees later tokens, which causal tasks refuse.

    With a predictor as many tokens pass as it names: nominal FLOPs are those of C, what is spent stands beside them.

    Options: `capacity` (0.125): the share of a group's real tokens. `weight` ("raw": l; "sigmoid": sigmoid(l)).
    `predictor`, see above. In an arm every second block is routed unless `backbone.moe_every` says otherwise, as in the paper.
    Loss: `predictor` (weight 0.01), the mean cross-entropy over real tokens and experts.
    Departure: x comes normalised, as all routers here get it; the paper's router reads the residual stream.
    The paper does not describe its small network: here relu, H = D / 4, at least 8.

    Parameters: `weight` (E, D); for "mlp" `predictor_up` (H, D), `predictor_down` (E, H), `predictor_bias` (E,), which starts
    at the logit of `capacity`. Not batch-coupled.
    """

    init_names: ClassVar[Mapping[str, str]] = {
        "predictor_up": "predictor_up",
        "predictor_down": "predictor_down",
        "predictor_bias": "predictor_bias",
    }

    loss_weights = {"predictor": 1e-2}
    whole_block = True
    every = 2

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and the share of the tokens that pass through a block."""
        return super().suggest(trial) | {"capacity": trial.suggest_float("capacity", 1 / 16, 1 / 2, log=True)}

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        *,
        capacity: float = 0.125,
        weight: Literal["raw", "sigmoid"] = "raw",
        predictor: Literal["router", "mlp"] | None = "router",
    ) -> None:
        super().__init__(d_model, num_experts)
        if not 0 < capacity <= 1:
            raise ValueError(f"capacity is {capacity}; it must be above 0 and at most 1")
        if weight not in ("raw", "sigmoid"):
            raise ValueError(f"weight is {weight!r}; it must be 'raw' or 'sigmoid'")
        if predictor not in ("router", "mlp", None):
            raise ValueError(f"predictor is {predictor!r}; it must be 'router', 'mlp' or null")
        self.capacity, self.sigmoid, self.predictor = capacity, weight == "sigmoid", predictor
        self.dynamic = predictor is not None
        if predictor is None:
            self.loss_weights = {}
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))
        if predictor == "mlp":
            hidden = max(8, d_model // 4)
            self.predictor_up = nn.Parameter(torch.zeros(hidden, d_model))
            self.predictor_down = nn.Parameter(torch.zeros(num_experts, hidden))
            odds = capacity / max(1 - capacity, 1e-3)
            self.predictor_bias = nn.Parameter(torch.full((num_experts,), math.log(odds)))

    @property
    def causal(self) -> bool:
        return False

    @property
    def causal_predictor(self) -> bool:
        return self.predictor is not None

    @property
    def per_token(self) -> bool:
        return self.causal_predictor

    @property
    def untrained(self) -> tuple[str, ...]:
        return ("predictor_up", "predictor_down", "predictor_bias") if self.predictor == "mlp" else ()

    @property
    def signed(self) -> bool:
        return not self.sigmoid

    def forward(self, inputs: RouterInput) -> Routing:
        logits_GSE = F.linear(inputs.x, self.weight)
        score_GSE = logits_GSE.sigmoid() if self.sigmoid else logits_GSE
        losses: dict[str, Tensor] = {}
        # `take` divides by the number of experts, of which each has the whole capacity here. Logits, as sigmoids of large ones tie.
        plan = take(logits_GSE, self.capacity * self.num_experts, inputs.mask, score_GSE)
        if self.predictor is not None:
            predicted_GSE = self._predicted(inputs.x, logits_GSE)
            losses["predictor"] = choice_loss(predicted_GSE, plan, inputs.mask)
            if not self.training:
                plan = take_all(score_GSE, predicted_GSE > 0, inputs.mask)
        return Routing(plan, losses, logits_GSE.flatten(0, 1))

    def nominal_rows(self, groups: int, positions: int) -> float:
        return float(groups * self.num_experts * room(self.capacity, 1, positions, 1))

    def _predicted(self, x_GSD: Tensor, logits_GSE: Tensor) -> Tensor:
        """Logits (G, S, E) of being chosen."""
        if self.predictor == "router":
            return logits_GSE
        hidden = F.linear(x_GSD.detach(), self.predictor_up).relu()
        return F.linear(hidden, self.predictor_down, self.predictor_bias)


def take_all(score_GSE: Tensor, chosen_GSE: Tensor, mask_GS: Tensor | None = None) -> PerExpert:
    """Every expert's chosen real positions, in order, weighted by their score; all (G, S, E) -> (G, E, C) fields.

    C is the most that an expert takes in a group, but at least 1, on a CPU; on a GPU, which would have to be waited for, it
    is S. Places that a group does not fill are switched off by `keep`.
    """
    if mask_GS is not None:
        chosen_GSE = chosen_GSE & mask_GS.unsqueeze(-1)
    chosen_GES = chosen_GSE.transpose(1, 2)
    places = chosen_GES.shape[-1]
    if chosen_GES.device.type == "cpu":
        places = max(1, int(chosen_GES.sum(-1).max()))
    position = chosen_GES.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[..., :places]
    keep = chosen_GES.gather(-1, position)
    weight = score_GSE.transpose(1, 2).gather(-1, position) * keep
    return PerExpert(position, weight, chosen_GES.shape[1], keep)


def choice_loss(logits_GSE: Tensor, plan: PerExpert, mask_GS: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of `logits` with "the expert took this token" over experts and real tokens."""
    groups, positions, _ = logits_GSE.shape
    target_TE = share_TE(plan, groups, positions, kept=True)
    each_T = F.binary_cross_entropy_with_logits(logits_GSE.flatten(0, 1), target_TE, reduction="none").mean(-1)
    return token_mean(each_T, None if mask_GS is None else mask_GS.flatten())
