"""Telemetry: what the routing did, derived from any plan, outside the routers.

Axes: G groups, S positions, T = G * S tokens, E experts, L mixture layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from routers.contract import Routing
from routers.plans import Slots, share_TE


@dataclass
class Tally:
    """Sums over the batches of one evaluation (or of the training steps since the last check)."""

    load_LE: list[Tensor] = field(default_factory=list)
    first_LT: list[list[Tensor]] = field(default_factory=list)
    tokens: int = 0
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

    def add(self, routings: Sequence[Routing], groups: int, positions: int) -> None:
        """Count everything, for `groups` x `positions` tokens."""
        self.add_work(routings)
        self.tokens += groups * positions
        for layer, routing in enumerate(routings):
            share = share_TE(routing.plan, groups, positions)
            if layer == len(self.load_LE):
                self.load_LE.append(torch.zeros(share.shape[1], device=share.device, dtype=torch.float64))
                self.first_LT.append([])
            self.load_LE[layer] = self.load_LE[layer] + share.double().sum(0)
            self.first_LT[layer].append(share.argmax(1))
            if not isinstance(routing.plan, Slots):
                self.unrouted = (
                    self.unrouted + (share_TE(routing.plan, groups, positions, kept=True).sum(1) == 0).double().sum()
                )
            if routing.probs is not None:
                probs = routing.probs.double()
                self.entropy = self.entropy - (probs * probs.clamp_min(1e-30).log()).sum()

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
            whole.tokens += part.tokens
            whole.unrouted = float(whole.unrouted) + float(part.unrouted)
            whole.entropy = float(whole.entropy) + float(part.entropy)
            whole.add_rows(float(part.assigned), float(part.kept), float(part.executed))
        return whole

    def first(self) -> list[Tensor]:
        """The expert with the largest share of each token, per layer; for churn."""
        return [torch.cat(parts) for parts in self.first_LT]

    def summary(self, before: Sequence[Tensor] | None = None) -> dict[str, float]:
        """Means over layers. before: `first()` of the last check, on the same tokens."""
        out: dict[str, float] = {}
        assigned, kept, executed = float(self.assigned), float(self.kept), float(self.executed)
        if assigned:
            out["drop_rate"] = 1 - kept / assigned
            out["padding_share"] = 1 - kept / executed if executed else 0.0
        if self.load_LE:
            layers = len(self.load_LE)
            load = [value / value.mean().clamp_min(1e-12) for value in self.load_LE]
            out["load_cv"] = sum(float(value.std(correction=0)) for value in load) / layers
            out["max_violation"] = sum(float(value.max()) - 1 for value in load) / layers
            out["dead_experts"] = float(sum(int((value == 0).sum()) for value in load))
            out["experts_per_token"] = sum(float(value.sum()) for value in self.load_LE) / layers / self.tokens
            out["unrouted_share"] = float(self.unrouted) / layers / self.tokens
            out["entropy"] = float(self.entropy) / layers / self.tokens
            now = self.first()
            if before is not None and all(a.shape == b.shape for a, b in zip(before, now, strict=True)):
                out["churn"] = sum(float((a != b).double().mean()) for a, b in zip(before, now, strict=True)) / layers
        return out
