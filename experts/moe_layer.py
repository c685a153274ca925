"""The mixture layer: a router, a bank of experts, and what lies between them.

Axes: G groups, S positions, T = G * S tokens, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from routelab.core.flops import Cost, matmul
from routelab.experts.activation_checkpointing import routed_once
from routelab.experts.dispatch import asked, run
from routelab.experts.feed_forward import FeedForward
from routelab.experts.grouped_experts import KERNELS, ExpertBank, Kernel
from routelab.experts.latent import Latent
from routelab.experts.zero_compute import ZeroCompute, split
from routelab.routers.base import ExpertWork, Router, RouterInput, Routing, routed
from routelab.routers.capacity import PRIORITIES, Priority, capacity, capacity_tensor, limit, ragged_capacity, unequal_capacity
from routelab.routers.plans import Blend, PerExpert, Plan, Ragged, Slots, TopK

CapacityGroup = Literal["sequence", "batch"]


class MixtureLayer(nn.Module):
    """A feed-forward layer whose work is shared out among experts: `layer(x, token_ids=None, mask=None) -> (out, Routing)`.

    x: (G, S, D), or (T, D) as one group; mask: (G, S) or (T,), True = real. Masked tokens take no capacity and no loss,
    and come out as 0. The router always runs in float32 with autocast off, also in a layer that was turned to bfloat16. Add the
    residual outside. Under `torch.utils.checkpoint` the selection is replayed, see `routelab.experts.activation_checkpointing`.

    router: any Router. experts: an ExpertBank of as many experts and features. shared: a FeedForward that sees every token.

    zero_compute: further choices of the router, which cost next to nothing: its `num_experts` counts them too, and they are the
    last ones. Rows, and what the ledger charges for them, are those of the bank alone; capacity counts every choice alike.
    latent_dim: the bank works in that many features, between two projections; router, `shared` and `zero_compute` see all of
    them. See `routelab.experts.latent`.

    capacity_factor: in training an expert takes at most ceil(factor * k * n / E) rows, n being the real tokens of the
    capacity group, k how many experts they choose on average, and 1 / E the router's `shares` if it has any; "default" is the
    router's own, None is dropless.
    eval_capacity_factor: the same in evaluation, dropless by default so that metrics do not depend on the batch size.
    capacity_group: "batch" or "sequence" (each group by itself). priority: who is served first, "default" is the router's
    own; see `routelab.routers.capacity.limit`.
    kernel: see `routelab.experts.dispatch.run`.
    """

    init_names: ClassVar[Mapping[str, str]] = {
        "router": "router",
        "experts": "",
        "shared": "shared",
        "latent": "latent",
        "zero_compute": "zero_compute",
    }

    def __init__(
        self,
        router: Router,
        experts: ExpertBank,
        shared: FeedForward | None = None,
        *,
        capacity_factor: float | Literal["default"] | None = "default",
        eval_capacity_factor: float | None = None,
        capacity_group: CapacityGroup = "batch",
        priority: Priority | Literal["default"] = "default",
        kernel: Kernel = "auto",
        latent_dim: int | None = None,
        zero_compute: ZeroCompute | None = None,
    ) -> None:
        super().__init__()
        free = 0 if zero_compute is None else zero_compute.num_experts
        # A latent layer's bank is as wide as the latent space.
        width = router.d_model if latent_dim is None else latent_dim
        if (width, router.num_experts) != (experts.d_model, experts.num_experts + free):
            raise ValueError(
                f"the router has d_model={router.d_model} and num_experts={router.num_experts}"
                f"{'' if latent_dim is None else f', the latent space {latent_dim} features'}, "
                f"the experts {experts.d_model} and {experts.num_experts}"
                f"{f' and {free} zero-compute ones' if free else ''}; they must be equal"
            )
        if router.zero_compute not in (None, free):
            raise ValueError(
                f"the router takes the last {router.zero_compute} experts for zero-compute ones; the layer has {free} of them"
            )
        self.router, self.experts, self.shared, self.zero_compute = router, experts, shared, zero_compute
        self.latent = None if latent_dim is None else Latent(router.d_model, latent_dim)
        shares = router.shares(torch.device("cpu"))
        self._shares = None if shares is None else shares[: experts.num_experts].tolist()
        self._followed = False
        self._logits: Tensor | None = None
        self.capacity_factor = router.capacity_factor if capacity_factor == "default" else capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.capacity_group = capacity_group
        self.priority = cast(Priority, router.priority if priority == "default" else priority)
        self.kernel = kernel
        self._fixed: dict[tuple[int, int], Cost] = {}
        for name, value in (("capacity_factor", self.capacity_factor), ("eval_capacity_factor", eval_capacity_factor)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be above 0 and finite, or null for dropless")
        for name, choice, allowed in (
            ("capacity_group", capacity_group, ("sequence", "batch")),
            ("priority", self.priority, PRIORITIES),
            ("kernel", kernel, KERNELS),
        ):
            if choice not in allowed:
                raise ValueError(f"{name} is {choice!r}; it must be one of {', '.join(allowed)}")

    routes = True
    """Tells a block that this feed-forward returns a Routing beside its output."""

    def forward(self, x: Tensor, token_ids: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        if x.ndim == 2:
            ids, real = (None if value is None else value.unsqueeze(0) for value in (token_ids, mask))
            out, routing = self(x.unsqueeze(0), ids, real)
            return out.squeeze(0), routing
        groups, positions, _ = x.shape
        routing = self.choose(x, token_ids, mask)
        plan = self._for_bank(routing.plan)
        narrow = x if self.latent is None else self.latent.enter(x)
        out, executed = run(self.experts, narrow, plan, self.kernel, self._most(plan, groups, positions))
        if self.latent is not None:
            out = self.latent.leave(out)
        if self.zero_compute is not None:
            out = out + self.zero_compute(x, split(routing.plan, self.experts.num_experts)[1])
        if self.shared is not None:
            # Padding has weight 0 in every plan, but the shared feed-forward knows no plan.
            always = self.shared(x)
            out = out + (always if mask is None else always * mask.unsqueeze(-1))
        assert routing.work is not None
        return out, replace(routing, work=replace(routing.work, executed=executed))

    def choose(self, x: Tensor, token_ids: Tensor | None, mask: Tensor | None) -> Routing:
        """The router's answer, checked, with padding taken out and capacity applied; nothing is executed yet.

        Under gradient checkpointing the second pass gets the answer of the first.
        """
        return routed_once(self, lambda: self._route(x, token_ids, mask))

    def _route(self, x: Tensor, token_ids: Tensor | None, mask: Tensor | None) -> Routing:
        groups, positions, _ = x.shape
        with torch.autocast(x.device.type, enabled=False):
            routing = routed(self.router, RouterInput(x.float(), token_ids, mask, self._logits_before()))
        if self._followed:
            self._logits = routing.logits
        plan = exclude(routing.plan, mask)
        assigned = asked(self._for_bank(plan), groups)
        plan = self._limited(plan, routing.probs, mask, groups, positions)
        work = ExpertWork(assigned, asked(self._for_bank(plan), groups), 0)
        logits, probs = (None if value is None else value.detach() for value in (routing.logits, routing.probs))
        return replace(routing, plan=plan, logits=logits, probs=probs, work=work)

    def _for_bank(self, plan: Plan) -> Plan:
        """What of a plan is rows for the bank."""
        return plan if self.zero_compute is None else split(plan, self.experts.num_experts)[0]

    def follow(self, before: MixtureLayer) -> None:
        """Show the router, from now on, the logits of the router of `before`, which runs before this layer in every forward
        pass: `RouterInput.before`. Gradients flow through them."""
        # Not a part of this layer: it must not turn up among its modules.
        self.__dict__["_before"] = before
        before._followed = True

    def _logits_before(self) -> Tensor | None:
        before: MixtureLayer | None = self.__dict__.get("_before")
        if before is None:
            return None
        # Taken away, so that what stays behind is never that of another batch.
        logits, before._logits = before._logits, None
        if logits is None:
            raise ValueError("the layer that this one follows has not run since, or its router gives no logits")
        return logits

    @property
    def causal(self) -> bool:
        """False if, in training, a token's output may depend on later tokens of its group."""
        if self.capacity_factor is None and self.eval_capacity_factor is None:
            return self.router.causal
        return self.router.causal and capacity_is_causal(self.router, self.priority)

    @property
    def causal_in_evaluation(self) -> bool:
        """True if the layer is causal, or its router learns what evaluation goes by instead: see `Router.causal_predictor`."""
        return self.causal or (self.router.causal_predictor and self.eval_capacity_factor is None)

    @property
    def batch_coupled(self) -> bool:
        """True if, in training, a token's output may depend on other groups of the batch."""
        limited = self.capacity_factor is not None or self.eval_capacity_factor is not None
        return self.router.batch_coupled or (limited and self.capacity_group == "batch")

    @property
    def per_token(self) -> bool:
        """True if in evaluation a token's output depends on that token alone."""
        return self.router.per_token and self.eval_capacity_factor is None

    @property
    def evaluation_coupled(self) -> bool:
        """True if in evaluation, too, a token's output may depend on other groups of the batch."""
        # A router that chooses per token in evaluation is coupled by its training alone.
        by_router = self.router.batch_coupled and not self.router.per_token
        return by_router or (self.eval_capacity_factor is not None and self.capacity_group == "batch")

    def nominal_cost(self, groups: int, positions: int) -> Cost:
        """FLOPs of one call without drops or padding, on `groups` x `positions` real tokens."""
        return self.fixed_cost(groups, positions) + self.row_cost * self.nominal_rows(groups, positions)

    def nominal_rows(self, groups: int, positions: int) -> float:
        """Rows of the bank that one evaluation forward is taken to ask for: of what the router asks for, the part that the
        router's `shares` mean for the bank (its experts among all, by number, where there are none)."""
        rows, experts = self.router.nominal_rows(groups, positions), self.experts.num_experts
        return rows * (experts / self.router.num_experts if self._shares is None else sum(self._shares))

    @property
    def row_cost(self) -> Cost:
        """FLOPs of one row."""
        return self.experts.row_cost

    @property
    def pair_cost(self) -> Cost:
        """FLOPs of two rows that attend to each other; none, where experts are feed-forwards."""
        return Cost()

    @property
    def pair_recomputed(self) -> float:
        """FLOPs that a training step runs a second time for two such rows."""
        return 0.0

    def optional_parameters(self) -> list[nn.Parameter]:
        """Parameters that a token meets only where it is chosen: those that experts have to themselves."""
        return list(self.experts.own_parameters().values())

    def fixed_cost(self, groups: int, positions: int) -> Cost:
        """FLOPs that do not depend on the choices: router, shared feed-forward, latent projections, constants, products with
        slots."""
        key = (groups, positions)
        if key not in self._fixed:
            cost = self.router.cost(groups, positions)
            if self.shared is not None:
                cost = cost + self.shared.cost(groups * positions)
            if self.latent is not None:
                cost = cost + self.latent.cost(groups * positions)
            mixed = groups * positions
            if self._uses_slots(positions):
                each = int(self.router.nominal_rows(1, positions)) // self.router.num_experts
                cost = cost + 2 * groups * matmul(each * self.experts.num_experts, positions, self.experts.d_model)
                mixed = groups * each * (self.router.num_experts - self.experts.num_experts)
                cost = cost + 2 * matmul(mixed, positions, self.router.d_model)
            if self.zero_compute is not None:
                cost = cost + self.zero_compute.cost(mixed)
            self._fixed[key] = cost
        return self._fixed[key]

    def _uses_slots(self, positions: int) -> bool:
        return isinstance(self.router.probe_plan(1, positions), Slots)

    def _most(self, plan: Plan, groups: int, positions: int) -> int | None:
        """The most rows that capacity leaves to an expert, as if no token were padding; None if that hangs on the plan."""
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if factor is None or not isinstance(plan, TopK):
            return None
        parts = groups if self.capacity_group == "sequence" else 1
        if self._shares is not None:
            factor = factor * self.router.num_experts * max(self._shares)
        return parts * capacity(factor, plan.expert.shape[1], groups * positions // parts, self.router.num_experts)

    def _limited(self, plan: Plan, probs: Tensor | None, mask: Tensor | None, groups: int, positions: int) -> Plan:
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if factor is None or not isinstance(plan, (TopK, Ragged)):
            return plan
        parts = groups if self.capacity_group == "sequence" else 1
        tokens, experts = groups * positions, plan.num_experts
        shares = self.router.shares(plan.weight.device)
        room: int | Tensor
        if shares is not None and isinstance(plan, TopK):
            real = (
                torch.full((parts,), tokens // parts, device=shares.device) if mask is None else mask.reshape(parts, -1).sum(1)
            )
            room = unequal_capacity(factor, plan.expert.shape[1], real, shares)
        elif isinstance(plan, Ragged):
            room = ragged_capacity(factor, plan, parts, tokens, None if mask is None else mask.flatten())
        elif mask is None:
            room = capacity(factor, plan.expert.shape[1], tokens // parts, experts)
        else:
            room = capacity_tensor(factor, plan.expert.shape[1], mask.reshape(parts, -1).sum(1), experts)
        score = None if probs is None or probs.shape[0] != tokens else probs.amax(-1)
        return limit(plan, room, self.priority, groups=parts, tokens=tokens, score=score)


def capacity_is_causal(router: Router, priority: str) -> bool:
    """Whether capacity drops a token's choices for the sake of no later token of its group.

    Served by position, later tokens come last. But where tokens choose differently many experts, the room itself grows with
    the choices of later ones.
    """
    return priority == "position" and not isinstance(router.probe_plan(1, 2), Ragged)


def exclude(plan: Plan, mask: Tensor | None) -> Plan:
    """Take padding out of a plan. mask (G, S), True = real."""
    if mask is None:
        return plan
    if isinstance(plan, Slots):
        real = mask.unsqueeze(-1).unsqueeze(-1)
        return replace(plan, dispatch=plan.dispatch * real, combine=plan.combine * real)
    mask_T = mask.flatten()
    if isinstance(plan, TopK):
        real = mask_T.unsqueeze(1).expand_as(plan.expert)
    elif isinstance(plan, Ragged):
        real = mask_T[plan.token]
    elif isinstance(plan, PerExpert):
        real = mask.unsqueeze(1).expand(-1, plan.num_experts, -1).gather(2, plan.position)
    else:
        assert isinstance(plan, Blend)
        real = mask_T.unsqueeze(1).expand_as(plan.weight)
    return replace(plan, keep=real if plan.keep is None else plan.keep & real)
