"""Plans: what a router decided, as pure data.

Axes: G groups, S positions, T = G * S tokens (row-major: token = group * S + position), E experts, k choices per
token, C tokens per expert and group, P slots per expert, N assignments.

Every plan ends with the fields `num_experts`, `keep` (which assignments capacity or a mask left alive; None = all) and
`weight_on` ("output": the weight scales the expert's output; "input": it scales the expert's input, as in Llama 4).
An entry of a fixed layout that stands for no choice at all has the weight 0 beside `keep` False; one that was chosen and then
dropped keeps its weight.
The experts package lays out the rows of a plan and puts them back; nothing here computes with expert weights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

WeightOn = Literal["output", "input"]


@dataclass(frozen=True)
class TopK:
    """Each token names its k experts, best first. `expert` (T, k) int64, `weight` (T, k), `keep` (T, k) bool."""

    expert: Tensor
    weight: Tensor
    num_experts: int
    keep: Tensor | None = None
    weight_on: WeightOn = "output"


@dataclass(frozen=True)
class PerExpert:
    """Each expert names its C tokens in every group. `position` (G, E, C) int64 within the group, `weight`, `keep` alike."""

    position: Tensor
    weight: Tensor
    num_experts: int
    keep: Tensor | None = None
    weight_on: WeightOn = "output"


@dataclass(frozen=True)
class Ragged:
    """Any number of assignments. `token` (N,) int64 flat token ids, `expert` (N,) int64, `weight` (N,), `keep` (N,) bool."""

    token: Tensor
    expert: Tensor
    weight: Tensor
    num_experts: int
    keep: Tensor | None = None
    weight_on: WeightOn = "output"


@dataclass(frozen=True)
class Slots:
    """Experts see mixtures of tokens. `dispatch` and `combine` (G, S, E, P): row (e, p) is dispatch-weighted over S, and a
    token's output is combine-weighted over (E, P). `keep` (E, P) or broadcastable to (G, E, P) switches slots off."""

    dispatch: Tensor
    combine: Tensor
    num_experts: int
    keep: Tensor | None = None
    weight_on: WeightOn = "output"


@dataclass(frozen=True)
class Blend:
    """Every expert runs on every token. `weight` (T, E), `keep` (T, E) bool."""

    weight: Tensor
    num_experts: int
    keep: Tensor | None = None
    weight_on: WeightOn = "output"


Plan = TopK | PerExpert | Ragged | Slots | Blend


def check_plan(plan: Plan, groups: int, positions: int) -> None:
    """Raise ValueError in one sentence if the plan's shapes or types do not fit `groups` x `positions` tokens.

    Values are not looked at (that would wait for a GPU); `routelab.routers.plans.check_values` does so where waiting is no harm.
    """
    tokens = groups * positions
    expected: dict[str, tuple[int | None, ...]]
    if isinstance(plan, TopK):
        expected = {"expert": (tokens, None), "weight": (tokens, None)}
    elif isinstance(plan, PerExpert):
        expected = dict.fromkeys(("position", "weight"), (groups, plan.num_experts, None))
    elif isinstance(plan, Ragged):
        expected = {"token": (None,), "expert": (None,), "weight": (None,)}
    elif isinstance(plan, Slots):
        expected = dict.fromkeys(("dispatch", "combine"), (groups, positions, plan.num_experts, None))
    elif isinstance(plan, Blend):
        expected = {"weight": (tokens, plan.num_experts)}
    else:
        raise ValueError(f"a plan must be one of TopK, PerExpert, Ragged, Slots, Blend; got {type(plan).__name__}")
    kind = type(plan).__name__
    shape: torch.Size | None = None
    for name, wanted in expected.items():
        value = getattr(plan, name)
        if not isinstance(value, Tensor):
            raise ValueError(f"{kind}.{name} must be a tensor; got {type(value).__name__}")
        if value.ndim != len(wanted) or any(w is not None and w != got for w, got in zip(wanted, value.shape, strict=True)):
            text = ", ".join("any" if w is None else str(w) for w in wanted)
            raise ValueError(
                f"{kind}.{name} has shape {tuple(value.shape)}; for {groups} groups of {positions} tokens it must be ({text})"
            )
        if shape is not None and value.shape != shape:
            raise ValueError(f"{kind}.{name} has shape {tuple(value.shape)}, but its fellow fields have {tuple(shape)}")
        shape = value.shape
        is_index = name in ("expert", "position", "token")
        if is_index and value.dtype != torch.int64:
            raise ValueError(f"{kind}.{name} must be int64; got {value.dtype}")
        if not is_index and not value.is_floating_point():
            raise ValueError(f"{kind}.{name} must be floating point; got {value.dtype}")
    if plan.keep is not None:
        assert shape is not None
        _check_keep(plan, (groups, *shape[2:]) if isinstance(plan, Slots) else tuple(shape))
    if plan.weight_on not in ("output", "input"):
        raise ValueError(f"{kind}.weight_on is {plan.weight_on!r}; it must be 'output' or 'input'")
    if plan.weight_on == "input" and isinstance(plan, Slots):
        raise ValueError("Slots already weighs its inputs by `dispatch`; weight_on must be 'output'")


def _check_keep(plan: Plan, shape: tuple[int, ...]) -> None:
    name, keep = f"{type(plan).__name__}.keep", plan.keep
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        found = keep.dtype if isinstance(keep, Tensor) else type(keep).__name__
        raise ValueError(f"{name} must be a tensor of torch.bool, or None; got {found}")
    fits = keep.shape == shape
    if isinstance(plan, Slots) and keep.ndim in (2, 3):
        fits = all(size in (1, whole) for size, whole in zip(reversed(keep.shape), reversed(shape), strict=False))
    if not fits:
        raise ValueError(f"{name} has shape {tuple(keep.shape)}; it must be {shape}")


def check_values(plan: Plan, groups: int, positions: int) -> None:
    """Raise ValueError if an index is out of range or a weight is not finite. Reads values, so it waits for a GPU."""
    bounds = {"expert": plan.num_experts, "position": positions, "token": groups * positions}
    for field in fields(plan):
        value = getattr(plan, field.name)
        if not isinstance(value, Tensor) or value.numel() == 0:
            continue
        if field.name in bounds:
            low, high = int(value.min()), int(value.max())
            if low < 0 or high >= bounds[field.name]:
                raise ValueError(
                    f"{type(plan).__name__}.{field.name} holds {low if low < 0 else high}; "
                    f"it must be 0 to {bounds[field.name] - 1}"
                )
        elif value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{type(plan).__name__}.{field.name} holds a value that is not finite")


def rows_per_group(plan: Plan, groups: int) -> float:
    """Expert rows that the plan asks for, per group, before anything is dropped. It waits for a GPU."""
    if isinstance(plan, Slots):
        return float(plan.dispatch.shape[2] * plan.dispatch.shape[3])
    return (plan.weight.numel() if isinstance(plan, Blend) else float(chosen(plan).sum())) / groups


def share_TE(plan: Plan, groups: int, positions: int, *, kept: bool = False) -> Tensor:
    """How much of each expert every token was given: (T, E) float32.

    A chosen expert counts 1 (0 if `kept` and the assignment was dropped), an entry that stands for no choice 0. Plans that
    choose nothing count their weights: `combine` summed over an expert's slots, or the blend's weight.
    """
    tokens = groups * positions
    if isinstance(plan, Blend):
        return _alive(plan.weight.detach().float(), plan.keep if kept else None)
    if isinstance(plan, Slots):
        combine = plan.combine.detach().float()
        if kept and plan.keep is not None:
            combine = combine * plan.keep.unsqueeze(-3)
        return combine.sum(-1).reshape(tokens, plan.num_experts)
    token, expert = token_expert(plan, positions)
    count = torch.ones(expert.shape, device=expert.device)
    if plan.keep is not None:
        count = count * (plan.keep if kept else chosen(plan)).reshape(-1)
    flat = torch.zeros(tokens * plan.num_experts, device=expert.device)
    return flat.index_add_(0, token * plan.num_experts + expert, count).view(tokens, plan.num_experts)


def chosen(plan: TopK | PerExpert | Ragged) -> Tensor:
    """Which entries are choices, dropped or not: bool, in the shape of the plan's weights."""
    if plan.keep is None:
        return torch.ones_like(plan.weight, dtype=torch.bool)
    return plan.keep | (plan.weight.detach() != 0)


def sets(chosen_TE: Tensor, weight_TE: Tensor, *, most: int | None = None, compact: bool | None = None) -> Ragged:
    """The plan of tokens that choose sets of experts. chosen (T, E) bool, weight (T, E), 0 where nothing is chosen.

    compact: as many assignments as there are choices, by token and expert, which on a GPU the host would have to wait for.
    Otherwise each token has `most` entries (default E; no token may choose more), its choices by falling weight, and `keep`
    tells them from the rest. None: compact on a CPU.
    """
    tokens, experts = chosen_TE.shape
    if chosen_TE.device.type == "cpu" if compact is None else compact:
        token_N, expert_N = chosen_TE.nonzero(as_tuple=True)
        return Ragged(token_N, expert_N, weight_TE[token_N, expert_N], experts)
    weight_TE = torch.where(chosen_TE, weight_TE, 0.0)
    most = experts if most is None else min(most, experts)
    weight_Tm, expert_Tm = weight_TE.topk(most, dim=-1)
    token_N = torch.arange(tokens, device=chosen_TE.device).repeat_interleave(most)
    keep_Tm = chosen_TE.gather(1, expert_Tm)
    return Ragged(token_N, expert_Tm.flatten(), weight_Tm.flatten(), experts, keep_Tm.flatten())


def token_expert(plan: TopK | PerExpert | Ragged, positions: int) -> tuple[Tensor, Tensor]:
    """Flat (N,) token ids and expert ids of every assignment, in the order of the plan's own fields."""
    if isinstance(plan, Ragged):
        return plan.token, plan.expert
    if isinstance(plan, TopK):
        tokens, k = plan.expert.shape
        token = torch.arange(tokens, device=plan.expert.device).unsqueeze(1).expand(tokens, k)
        return token.reshape(-1), plan.expert.reshape(-1)
    groups, experts, _ = plan.position.shape
    start = torch.arange(groups, device=plan.position.device).view(-1, 1, 1) * positions
    expert = torch.arange(experts, device=plan.position.device).view(1, -1, 1).expand_as(plan.position)
    return (plan.position + start).reshape(-1), expert.reshape(-1)


def _alive(value: Tensor, keep: Tensor | None) -> Tensor:
    return value if keep is None else value * keep
