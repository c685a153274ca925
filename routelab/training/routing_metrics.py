"""Telemetry: what the routing did, derived from any plan, outside the routers.

Axes: G groups, S positions, T = G * S tokens, E experts, L mixture layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from routelab.routers.base import Routing
from routelab.routers.plans import Blend, Plan, Slots, share_TE, token_expert


def weight_TE(plan: Plan, groups: int, positions: int) -> Tensor:
    """The weight of every expert in each token's output, before anything is dropped: (T, E) float32, 0 where not chosen.

    Slots: `combine`, summed over an expert's slots.
    """
    if isinstance(plan, (Blend, Slots)):
        return share_TE(plan, groups, positions)
    token, expert = token_expert(plan, positions)
    weight = plan.weight.detach().float().reshape(-1)
    flat = torch.zeros(groups * positions * plan.num_experts, device=weight.device)
    return flat.index_add_(0, token * plan.num_experts + expert, weight).view(-1, plan.num_experts)


def first_choice(weight: Tensor, share: Tensor) -> Tensor:
    """The expert with the largest weight among those that a token was given, (T,) int64; -1 for a token without one.

    weight, share: (T, E), as `weight_TE` and `share_TE` return them.
    """
    chosen_TE = share > 0
    best_T = weight.masked_fill(~chosen_TE, -torch.inf).argmax(-1)
    return torch.where(chosen_TE.any(-1), best_T, -1)


def entropy_T(probs: Tensor) -> Tensor:
    """Entropy in nats of each row of (T, E) weights, of what is above 0 and divided by its sum; 0 for a row of zeros."""
    probs = probs.double().clamp_min(0)
    probs = probs / probs.sum(-1, keepdim=True).clamp_min(1e-30)
    return -torch.special.xlogy(probs, probs).sum(-1)


@dataclass
class Tally:
    """Sums over the batches of one evaluation (or of the training steps since the last check).

    Loads, entropy and first choices are of what the router asked for, before capacity dropped any of it; padding is in none
    of them. Nothing here waits for a GPU; `merged`, `loads` and `summary` do.
    """

    load_LE: list[Tensor] = field(default_factory=list)
    first_LT: list[list[Tensor]] = field(default_factory=list)
    tokens: float | Tensor = 0
    unrouted: float | Tensor = 0.0
    entropy: float | Tensor = 0.0
    assigned: float | Tensor = 0.0
    kept: float | Tensor = 0.0
    executed: float | Tensor = 0.0

    def add_work(self, routings: Sequence[Routing]) -> None:
        """Count rows only: cheap enough for every training step."""
        for routing in routings:
            if routing.work is not None:
                self.add_rows(routing.work.assigned, routing.work.kept, routing.work.executed)

    def add(self, routings: Sequence[Routing], groups: int, positions: int, mask: Tensor | None = None) -> None:
        """Count everything, for `groups` x `positions` tokens. mask: (G, S), True = a real token; None = all are real."""
        self.add_work(routings)
        real_T = None if mask is None else mask.flatten()
        self.tokens = self.tokens + (groups * positions if real_T is None else real_T.sum())

        def total(value_T: Tensor) -> Tensor:
            return (value_T if real_T is None else value_T * real_T).double().sum()

        for layer, routing in enumerate(routings):
            share = share_TE(routing.plan, groups, positions)
            weight = weight_TE(routing.plan, groups, positions)
            if real_T is not None:
                share = share * real_T.unsqueeze(1)
            if layer == len(self.load_LE):
                self.load_LE.append(torch.zeros(share.shape[1], device=share.device, dtype=torch.float64))
                self.first_LT.append([])
            self.load_LE[layer] = self.load_LE[layer] + share.double().sum(0)
            self.first_LT[layer].append(first_choice(weight, share))
            if not isinstance(routing.plan, Slots):
                kept = share_TE(routing.plan, groups, positions, kept=True)
                self.unrouted = self.unrouted + total(kept.sum(1) == 0)
            self.entropy = self.entropy + total(entropy_T(weight if routing.probs is None else routing.probs))

    def add_rows(self, assigned: float | Tensor, kept: float | Tensor, executed: float | Tensor) -> None:
        """Count rows that were counted elsewhere."""
        self.assigned, self.kept, self.executed = self.assigned + assigned, self.kept + kept, self.executed + executed

    @classmethod
    def merged(cls, parts: Sequence[Tally]) -> Tally:
        """One tally of several processes' parts, on the CPU; the parts' tokens in the order of the processes."""
        whole = cls()
        for part in parts:
            for layer, load in enumerate(part.load_LE):
                if layer == len(whole.load_LE):
                    whole.load_LE.append(torch.zeros_like(load, device="cpu"))
                    whole.first_LT.append([])
                whole.load_LE[layer] = whole.load_LE[layer] + load.cpu()
                whole.first_LT[layer] += [piece.cpu() for piece in part.first_LT[layer]]
            whole.tokens = float(whole.tokens) + float(part.tokens)
            whole.unrouted = float(whole.unrouted) + float(part.unrouted)
            whole.entropy = float(whole.entropy) + float(part.entropy)
            whole.add_rows(float(part.assigned), float(part.kept), float(part.executed))
        return whole

    def first(self) -> list[Tensor]:
        """Each token's first choice per layer, -1 where it has none; for churn."""
        return [torch.cat(parts) for parts in self.first_LT]

    def loads(self) -> list[Tensor]:
        """Every expert's load over the mean of its layer, (E,) float64 per layer: 1 is balance, 0 a dead expert."""
        return [value / value.mean().clamp_min(1e-12) for value in self.load_LE]

    def summary(self, before: Sequence[Tensor] | None = None) -> dict[str, float]:
        """Means over layers; dead experts are summed. before: `first()` of the last check, on the same tokens.

        drop_rate: share of the asked rows that were dropped. padding_share: share of the computed rows that were padding.
        load_cv: population deviation of the experts' loads over their mean. max_violation: the largest load over the mean,
        less 1 (MaxVio, Wang et al. 2024). dead_experts: those that no token chose. experts_per_token: expert rows asked for
        per real token, so E where every expert runs on each, and slots per token where there are slots. unrouted_share:
        tokens that no expert saw. entropy: of the router's probabilities, or where it gives none, of its weights, in nats.
        churn: share of tokens whose expert of largest weight is another one than before.
        """
        out: dict[str, float] = {}
        assigned, kept, executed = float(self.assigned), float(self.kept), float(self.executed)
        if assigned:
            out["drop_rate"] = 1 - kept / assigned
            out["padding_share"] = 1 - kept / executed if executed else 0.0
        if self.load_LE:
            layers, tokens = len(self.load_LE), max(1.0, float(self.tokens))
            load = self.loads()
            out["load_cv"] = sum(float(value.std(correction=0)) for value in load) / layers
            out["max_violation"] = sum(float(value.max()) - 1 for value in load) / layers
            out["dead_experts"] = float(sum(int((value == 0).sum()) for value in load))
            out["experts_per_token"] = assigned / layers / tokens
            out["unrouted_share"] = float(self.unrouted) / layers / tokens
            out["entropy"] = float(self.entropy) / layers / tokens
            now = self.first()
            # A stage may have brought other layers.
            if before is not None and [a.shape for a in before] == [b.shape for b in now]:
                out["churn"] = sum(float((a != b).sum()) for a, b in zip(before, now, strict=True)) / layers / tokens
        return out
