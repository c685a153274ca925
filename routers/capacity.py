"""Capacity: who is dropped when an expert is full. Applied by the layer to any plan of token choices.

Axes: G groups, S positions, T = G * S, E experts, k choices, N assignments. Capacity C is rows per expert and capacity
group: C = ceil(factor * k * n / E), where n is the number of real tokens in the capacity group (one sequence, or the
whole batch) and k their choices each (the mean, where tokens choose differently many). Other codes leave k out or round
down; for n=100, E=8, k=2, factor 1.25 this gives 32.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from routelab.routers.plans import Plan, Ragged, TopK, chosen, token_expert

Priority = Literal["position", "choice", "probability", "random"]
PRIORITIES: tuple[str, ...] = get_args(Priority)


def capacity(factor: float, k: float, tokens: int, num_experts: int) -> int:
    """Rows per expert for `tokens` real tokens: ceil(factor * k * tokens / num_experts)."""
    # Rounded before ceil, so that 1.1 * 10 / 1 does not become 12 through binary fractions.
    return math.ceil(round(factor * k * tokens / num_experts, 9))


def capacity_tensor(factor: float, k: float, tokens: Tensor, num_experts: int) -> Tensor:
    """As `capacity`, for token counts that live on a device (no wait for it). (X,) -> (X,) int64."""
    return torch.ceil((tokens.double() * (factor * k / num_experts)).round(decimals=9)).long()


def unequal_capacity(factor: float, k: float, tokens: Tensor, shares: Tensor) -> Tensor:
    """As `capacity_tensor`, for experts meant to take unequal parts of all choices: ceil(factor * k * tokens * share).

    tokens (X,), shares (E,) float64, which sum to 1 -> (X, E) int64.
    """
    return torch.ceil((tokens.double().unsqueeze(1) * factor * k * shares).round(decimals=9)).long()


def ragged_capacity(factor: float, plan: Ragged, groups: int, tokens: int, mask: Tensor | None = None) -> Tensor:
    """Rows per expert in each of `groups` capacity groups of a plan whose tokens choose differently many experts.

    ceil(factor * k * n / E) with k the mean number of choices of the group's n real tokens, so that k * n is the number of
    their choices. mask (T,), True = real. -> (groups,) int64.
    """
    real = chosen(plan).long() if mask is None else (chosen(plan) & mask[plan.token]).long()
    group = torch.div(plan.token * groups, tokens, rounding_mode="floor")
    choices = torch.zeros(groups, dtype=torch.int64, device=plan.token.device).index_add_(0, group, real)
    return capacity_tensor(factor, 1.0, choices, plan.num_experts)


def limit(
    plan: Plan,
    capacity: int | Tensor,
    priority: Priority = "position",
    *,
    groups: int = 1,
    tokens: int | None = None,
    score: Tensor | None = None,
) -> Plan:
    """Drop the assignments that do not fit: at most `capacity` rows for each expert in each capacity group.

    capacity: one number, or (groups,) or (groups, E) int64. groups: the tokens are split into this many equal capacity groups; a Ragged
    plan with several needs `tokens`, their total number.
    Assignments that are already dropped take no room. The order in which assignments are served:

    - "position": token by token, all choices of a token before the next token's. Looks at no later token.
    - "choice": all first choices by position, then all second choices (GShard). A later token's first choice can push
      out an earlier token's second.
    - "probability": as "choice", with the most confident tokens first (Riquelme 2021, batch-prioritised routing);
      confidence is `score` (T,) if given, else the token's largest weight (for a Ragged plan, each assignment's own).
    - "random": a random order, from torch's global generator.

    Plans without token choices (PerExpert, Slots, Blend) have their size built in and come back unchanged.
    """
    if not isinstance(plan, (TopK, Ragged)):
        return plan
    if priority not in PRIORITIES:
        raise ValueError(f"priority is {priority!r}; it must be one of {', '.join(PRIORITIES)}")
    token, expert = token_expert(plan, 0)
    if isinstance(plan, TopK):
        tokens = plan.expert.shape[0]
    if groups > 1 and tokens is None:
        raise ValueError("a Ragged plan with several capacity groups needs the number of tokens")
    choice = _choice_number(plan, token)
    order = _service_order(plan, priority, token, choice, score)
    keep = None if plan.keep is None else plan.keep.reshape(-1)
    bucket = expert
    if groups > 1:
        bucket = expert + torch.div(token * groups, cast(int, tokens), rounding_mode="floor") * plan.num_experts
    buckets = groups * plan.num_experts
    if keep is not None:
        # Dropped assignments go to a bucket of their own, where they take nobody's room.
        bucket = torch.where(keep, bucket, buckets)
    rank = rank_in_bucket(bucket[order])
    if isinstance(capacity, Tensor):
        room = capacity if capacity.ndim == 2 else capacity.unsqueeze(1).expand(-1, plan.num_experts)
        allowed = torch.cat([room.flatten(), room.new_zeros(1)]).to(bucket.device)[bucket[order]]
    else:
        allowed = torch.full_like(rank, capacity)
    fits = torch.empty_like(order, dtype=torch.bool)
    fits[order] = rank < allowed
    if keep is not None:
        fits = fits & keep
    return replace(plan, keep=fits.view_as(plan.expert))


def rank_in_bucket(bucket: Tensor) -> Tensor:
    """How many earlier entries share each entry's bucket. (N,) -> (N,), by one stable sort, whatever the bucket count."""
    ordered, order = torch.sort(bucket, stable=True)
    rank = torch.empty_like(bucket)
    rank[order] = torch.arange(bucket.numel(), device=bucket.device) - torch.searchsorted(ordered, ordered)
    return rank


def _choice_number(plan: TopK | Ragged, token: Tensor) -> Tensor:
    if isinstance(plan, TopK):
        tokens, k = plan.expert.shape
        return torch.arange(k, device=token.device).unsqueeze(0).expand(tokens, k).reshape(-1)
    # The n-th largest weight of a token is its n-th choice.
    by_weight = torch.argsort(plan.weight.detach(), descending=True, stable=True)
    number = torch.empty_like(token)
    number[by_weight] = rank_in_bucket(token[by_weight])
    return number


def _service_order(plan: TopK | Ragged, priority: str, token: Tensor, choice: Tensor, score: Tensor | None) -> Tensor:
    count = token.numel()
    if priority == "random":
        return torch.randperm(count, device=token.device)
    if priority == "position" and isinstance(plan, TopK):
        return torch.arange(count, device=token.device)
    if priority == "position":
        order = torch.argsort(choice, stable=True)
        return order[torch.argsort(token[order], stable=True)]
    order = torch.arange(count, device=token.device)
    if priority == "probability":
        if score is not None:
            value = score.detach()[token]
        elif isinstance(plan, TopK):
            value = plan.weight.detach().amax(1)[token]
        else:
            value = plan.weight.detach()
        order = torch.argsort(value, descending=True, stable=True)
    else:
        order = order[torch.argsort(token, stable=True)]
    return order[torch.argsort(choice[order], stable=True)]
