"""Plans as they are not: an expert switched off, one expert alone, random, swapped and even routing. Pure functions of plans.

Axes: G groups, S positions, T = G * S tokens, E experts, k choices, C tokens per expert and group, P slots per expert.

Nothing is renormalised unless it is said: what an expert is taken from goes to nothing, and its token keeps the rest.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from routelab.routers.plans import Blend, PerExpert, Plan, Ragged, Slots, TopK, token_expert


def without(plan: Plan, expert: int) -> Plan:
    """The plan with one expert switched off: what it would have got is routed to nothing."""
    if isinstance(plan, (TopK, Ragged)):
        others = plan.expert != expert
    else:
        device = plan.combine.device if isinstance(plan, Slots) else plan.weight.device
        others_E = torch.arange(plan.num_experts, device=device) != expert
        if isinstance(plan, Slots):
            others = others_E.unsqueeze(1).expand(-1, plan.combine.shape[3])
        elif isinstance(plan, PerExpert):
            others = others_E.view(1, -1, 1).expand_as(plan.weight)
        else:
            others = others_E.expand_as(plan.weight)
    return replace(plan, keep=others if plan.keep is None else plan.keep.bool() & others)


def only(plan: Plan, expert: int, groups: int, positions: int) -> Plan:
    """One expert does the work of all: it gets every token that had any expert, with the sum of the token's weights.

    Slots: the expert's slots see what they saw, and each token takes from them in the proportions it did, with the same sum.
    """
    if isinstance(plan, Slots):
        own_E1 = (torch.arange(plan.num_experts, device=plan.combine.device) == expert).unsqueeze(1)
        mine = plan.combine * own_E1
        total, kept = (value.sum((2, 3), keepdim=True) for value in (plan.combine, mine))
        return replace(plan, combine=mine * total / kept.clamp_min(torch.finfo(kept.dtype).tiny))
    weight = plan.weight if plan.keep is None else plan.weight * plan.keep
    token_T = torch.arange(groups * positions, device=weight.device)
    if isinstance(plan, Blend):
        total_T = weight.sum(1)
        some_T = torch.ones_like(token_T, dtype=torch.bool) if plan.keep is None else plan.keep.any(1)
    else:
        token_N, _ = token_expert(plan, positions)
        alive_N = torch.ones_like(token_N) if plan.keep is None else plan.keep.reshape(-1).long()
        total_T = weight.new_zeros(len(token_T)).index_add(0, token_N, weight.reshape(-1))
        some_T = torch.zeros_like(token_T).index_add(0, token_N, alive_N) > 0
    return Ragged(token_T, torch.full_like(token_T, expert), total_T, plan.num_experts, some_T, plan.weight_on)


def random(plan: Plan, groups: int, positions: int, generator: torch.Generator) -> Plan:
    """Every token keeps its weights, and gets as many experts as it had, drawn evenly from all, its own among them; with PerExpert
    every expert gets as many positions as it had, drawn evenly from the group, and keeps its weights."""
    if isinstance(plan, PerExpert):
        order_GS = _orders(groups, positions, generator, plan.position)
        return replace(plan, position=order_GS.gather(1, plan.position.flatten(1)).view_as(plan.position))
    like = plan.combine if isinstance(plan, Slots) else plan.weight
    order_TE = _orders(groups * positions, plan.num_experts, generator, like)
    if isinstance(plan, TopK):
        return replace(plan, expert=order_TE.gather(1, plan.expert))
    if isinstance(plan, Ragged):
        return replace(plan, expert=order_TE[plan.token, plan.expert])
    if isinstance(plan, Slots):
        order = order_TE.view(groups, positions, plan.num_experts, 1).expand_as(plan.combine)
        return replace(plan, combine=plan.combine.gather(2, order))
    keep = None if plan.keep is None else plan.keep.gather(1, order_TE)
    return replace(plan, weight=plan.weight.gather(1, order_TE), keep=keep)


def swapped(plan: Plan, groups: int, positions: int) -> Plan:
    """Every example is routed as the one before it in the batch, position by position, weights included. Where the batch is
    one group, every token is an example."""
    step = positions if groups > 1 else 1
    if isinstance(plan, Ragged):
        return replace(plan, token=(plan.token + step) % (groups * positions))
    if isinstance(plan, PerExpert) and groups == 1:
        return replace(plan, position=(plan.position + 1) % positions)
    if isinstance(plan, PerExpert):
        return replace(plan, position=plan.position.roll(1, 0), weight=plan.weight.roll(1, 0), keep=_rolled(plan.keep, 1))
    if isinstance(plan, Slots):
        dispatch, combine = (value.flatten(0, 1).roll(step, 0).view_as(value) for value in (plan.dispatch, plan.combine))
        # One group's slots serve all of its tokens; `keep` of every group goes with the group.
        keep = _rolled(plan.keep, 1) if plan.keep is not None and plan.keep.ndim == 3 and groups > 1 else plan.keep
        return replace(plan, dispatch=dispatch, combine=combine, keep=keep)
    weight, keep = plan.weight.roll(step, 0), _rolled(plan.keep, step)
    if isinstance(plan, TopK):
        return replace(plan, expert=plan.expert.roll(step, 0), weight=weight, keep=keep)
    return replace(plan, weight=weight, keep=keep)


def even(plan: Plan) -> Plan:
    """The same choices, each with the weight that living choices of this batch have on average: what is left of the gate
    without its values. Slots: of the combine weights."""
    if isinstance(plan, Slots):
        return replace(plan, combine=torch.full_like(plan.combine, float(plan.combine.mean())))
    living = plan.weight if plan.keep is None else plan.weight[plan.keep]
    mean = float(living.mean()) if living.numel() else 0.0
    return replace(plan, weight=torch.full_like(plan.weight, mean))


def _orders(rows: int, length: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Independent random permutations, (rows, length), drawn on the CPU so that every device gets the same."""
    return torch.rand(rows, length, generator=generator).argsort(1).to(like.device)


def _rolled(keep: Tensor | None, step: int) -> Tensor | None:
    return None if keep is None else keep.roll(step, 0)
