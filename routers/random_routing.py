"""Random routing: the control that says what a router's choices are worth.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, k choices per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.core.flops import Cost, matmul
from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.hash_layer import mix
from routelab.routers.plans import Blend, TopK
from routelab.routers.topk import check_top_k


class Random(Router):
    """k experts drawn uniformly for every token in training, with weight 1/k (after Zuo et al. 2021, THOR).

    The draw comes from torch's global generator. THOR draws one expert of a layer for a whole batch, adds a consistency loss
    between two draws, and evaluates with fresh draws; here, as a control, every token draws by itself and there is no loss.

    Options: `top_k` (1): the experts of a token, all different. `evaluation` ("hash"): without a draw, the k experts are a
    fixed hash of the token's position and id (of the position alone where there are no ids), salted by the seed so that
    layers differ. "blend": the mean of all E experts, which is what training averages over; an evaluation then runs E rows
    per token. `frozen` (False): the k largest logits of x W^T instead, in training and in evaluation, with a W (E, D) that
    is drawn once from N(0, 1/D) and never learned; it takes no `evaluation`.

    No parameter, no gradient, no loss. Causal, not batch-coupled. In evaluation the hash looks at a token's position, so only
    "blend" and `frozen` are per token.
    """

    noiseless = {"frozen": True, "evaluation": "hash"}

    salt: Tensor
    weight: Tensor

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        *,
        top_k: int = 1,
        evaluation: Literal["hash", "blend"] = "hash",
        frozen: bool = False,
    ) -> None:
        super().__init__(d_model, num_experts)
        check_top_k(top_k, num_experts)
        if evaluation not in ("hash", "blend"):
            raise ValueError(f"evaluation is {evaluation!r}; it must be 'hash' or 'blend'")
        if frozen and evaluation != "hash":
            raise ValueError(f"evaluation is {evaluation!r}, but frozen=True evaluates as it trains; leave one of them out")
        self.top_k, self.evaluation, self.frozen = top_k, evaluation, frozen
        self.register_buffer("salt", torch.zeros((), dtype=torch.int64))
        self.register_buffer("weight", torch.zeros(num_experts if frozen else 0, d_model))

    @property
    def per_token(self) -> bool:
        return self.frozen or self.evaluation == "blend"

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        self.salt.copy_(torch.randint(2**31, (), generator=generator("salt")))
        drawn = torch.randn(self.weight.shape, generator=generator("weight"))
        self.weight.copy_(drawn * self.d_model**-0.5)

    def forward(self, inputs: RouterInput) -> Routing:
        x_TD, experts = inputs.x_TD, self.num_experts
        if self.frozen:
            with torch.no_grad():
                logits_TE = F.linear(x_TD, self.weight)
            return Routing(self._plan(logits_TE), {}, logits_TE, logits_TE.softmax(-1))
        if self.training:
            return Routing(self._plan(torch.rand(x_TD.shape[0], experts, device=x_TD.device)))
        if self.evaluation == "blend":
            return Routing(Blend(x_TD.new_full((x_TD.shape[0], experts), 1 / experts), experts))
        return Routing(self._plan(hash_scores(inputs, experts, self.salt)))

    def _plan(self, score_TE: Tensor) -> TopK:
        expert_Tk = score_TE.topk(self.top_k, dim=-1).indices
        weight = torch.full(expert_Tk.shape, 1 / self.top_k, device=expert_Tk.device, dtype=torch.float32)
        return TopK(expert_Tk, weight, self.num_experts)

    def cost(self, groups: int, positions: int) -> Cost:
        return Cost(matmul(groups * positions, self.d_model, self.weight.shape[0]).forward, 0.0)


def hash_scores(inputs: RouterInput, num_experts: int, salt: Tensor) -> Tensor:
    """A fixed pseudo-random rank of the experts for each (position, id), or position: (T, E) int64, no two alike in a row."""
    groups, positions, _ = inputs.x.shape
    device = inputs.x.device
    here_S = mix(torch.arange(positions, device=device) ^ salt)
    ids_GS = torch.zeros(groups, positions, dtype=torch.int64, device=device) if inputs.token_ids is None else inputs.token_ids
    token_T1 = mix(here_S + ids_GS).reshape(-1, 1)
    expert_E = torch.arange(num_experts, device=device)
    # The expert as the last digit keeps two equal hashes apart, so that the choice never hangs on how topk breaks a tie.
    return mix(token_T1 ^ mix(expert_E + 1)) * num_experts + expert_E
