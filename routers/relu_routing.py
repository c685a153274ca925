"""ReLU routing: a token takes every expert with a positive logit, and a penalty steers how many those are.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, N assignments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.core.collectives import sharing, total
from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.plans import sets
from routelab.routers.topk import check_top_k

_SMALLEST, _LARGEST = 1e-30, 1e30


class ReLU(Router):
    """Experts with relu(x W^T) > 0, weighted by that value (Wang, Zhu, Chen 2024, ReMoE, §3).

    How many experts a token takes, none included, is its own affair; gates open and close continuously. An L1 penalty
    keeps the mean at `top_k`: lambda * mean_t sum_e f_e relu(l)_te with f_e = E / (top_k T) * tokens of e, so that busy
    experts pay more (eq. 10-11). After each optimizer step lambda grows by a factor where experts were used more than
    1 - sparsity = top_k / E of the time, and shrinks by it where less; in one model all layers share one lambda (eq. 6-8).

    Options: `top_k` (1): the target. `penalty_start` (1e-8) and `penalty_growth` (1.2): lambda's first value and factor, as in
    all the paper's experiments.

    Loss: `l1`, which contains lambda (weight 1). Dropless; capacity, if set, counts choices really made. Nominal rows are
    those of the target; what is spent at first is far more, about E / 2 experts per token.
    Departures: lambda stays within 1e-30 and 1e30, as 0 could not grow again. In several processes f counts all of them.
    On a GPU, which nothing waits for, E entries per token are laid out, and those without a choice computed by no product.
    Without a bias, only tokens with a common part can be sparse: of tokens around 0 every expert gets half, whatever lambda.

    Parameters: `weight` (E, D). Buffers (float32): `penalty` () lambda, `layers` () layers sharing it, known from the first
    step on, `used` (2,) assignments made and possible since the last step. Causal, not batch-coupled, per token.
    """

    loss_weights = {"l1": 1.0}
    dynamic = True
    counts = ("used",)

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """The default's, and the factor of lambda (its start is what the weight of `l1` scales)."""
        return super().suggest(trial) | {"penalty_growth": trial.suggest_float("penalty_growth", 1.05, 1.5)}

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        *,
        top_k: int = 1,
        penalty_start: float = 1e-8,
        penalty_growth: float = 1.2,
    ) -> None:
        super().__init__(d_model, num_experts)
        check_top_k(top_k, num_experts)
        if not _SMALLEST <= penalty_start <= _LARGEST:
            raise ValueError(f"penalty_start is {penalty_start}; it must be between {_SMALLEST} and {_LARGEST}")
        if not 1 < penalty_growth < math.inf:
            raise ValueError(f"penalty_growth is {penalty_growth}; it must be above 1")
        self.top_k, self.penalty_growth = top_k, penalty_growth
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))
        self.penalty: Tensor
        self.layers: Tensor
        self.used: Tensor
        self.register_buffer("penalty", torch.tensor(penalty_start))
        self.register_buffer("layers", torch.tensor(1.0))
        self.register_buffer("used", torch.zeros(2))

    def forward(self, inputs: RouterInput) -> Routing:
        logits_TE = F.linear(inputs.x_TD, self.weight)
        gate_TE = logits_TE.relu()
        active_TE = gate_TE > 0
        real_T = torch.ones_like(gate_TE[:, 0]) if inputs.mask_T is None else inputs.mask_T.to(gate_TE.dtype)
        count_E = (active_TE * real_T.unsqueeze(1)).sum(0)
        if self.training and torch.is_grad_enabled():
            self.used += torch.stack([count_E.sum(), real_T.sum() * self.num_experts])
        # A copy: `update` and the probes of the layer's cost write to the buffer before backward has read it.
        losses = {"l1": self.penalty.clone() / self.layers.clone() * weighted_l1(gate_TE, count_E, real_T, self.top_k)}
        plan = sets(active_TE, gate_TE)
        share_TE = gate_TE / gate_TE.sum(-1, keepdim=True).clamp_min(1e-20)
        return Routing(plan, losses, logits_TE, share_TE)

    def update(self) -> None:
        self.update_layers([self])

    @classmethod
    def update_layers(cls, routers: Sequence[Router]) -> None:
        layers = [router for router in routers if isinstance(router, ReLU)]
        with torch.no_grad():
            made, possible = torch.stack([layer.used for layer in layers]).sum(0)
            for layer in layers:
                # Used more than wanted is sparser than wanted the other way round; nothing counted moves nothing.
                direction = torch.sign(made * layer.num_experts - possible * layer.top_k)
                layer.penalty.mul_(layer.penalty_growth**direction).clamp_(_SMALLEST, _LARGEST)
                layer.layers.fill_(len(layers))
                layer.used.zero_()

    def nominal_rows(self, groups: int, positions: int) -> float:
        return float(groups * positions * self.top_k)


def weighted_l1(gate: Tensor, count: Tensor, real: Tensor, k: float) -> Tensor:
    """mean_t sum_e f_e gate_te with f_e = E / (k T) * count_e (ReMoE, the load-balancing form), without lambda.

    gate (T, E), at least 0. count (E,): real tokens that use each expert. real (T,): 1.0 for a real token. In several
    processes f and T are those of the whole batch, so that the mean of the losses is the loss of one process.
    """
    number = total(real.sum()).clamp_min(1)
    frequency = total(count.detach()) * gate.shape[1] / (k * number)
    return sharing() * torch.dot(frequency, (real @ gate) / number)
