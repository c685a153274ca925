"""Routed arms: the backbone with a mixture in every n-th feed-forward slot."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from baselines.single import SingleBackbone
from baselines.task import Task
from experts.bank import ExpertBank
from experts.kinds import FeedForward
from experts.mixture import MixtureLayer
from routelab.backbones.contract import Slot
from routers.contract import Router
from routers.errors import UsageError, unknown
from routers.registry import ROUTERS, build_router, option_names

LAYER_OPTIONS = ("capacity_factor", "eval_capacity_factor", "capacity_group", "priority", "kernel")
"""Keys of the router section that belong to the layer, unless the router itself takes an option of that name."""

ARM_OPTIONS = ("loss_weights", "allow_leak")

DEFAULT_EXPERTS = 8


class Routed(SingleBackbone):
    """The backbone with mixture layers routed by the router of the arm's name.

    `experts.count` experts of width `experts.hidden` (None: as wide as the dense feed-forward, unless matching sizes it)
    in every `backbone.moe_every`-th layer, counted from the end of each run of n; the other layers stay dense. Causal tasks
    count capacity by the sequence unless `router.capacity_group` says otherwise, and refuse routers that see the future
    unless `router.allow_leak` is true.
    """

    knobs = ("experts.hidden",)
    uses = ("backbone", "experts", "router")

    def fill(self, slot: Slot) -> FeedForward | MixtureLayer:
        every = int(self.spec.backbone.get("moe_every", 1))
        if every < 1:
            raise ValueError(f"backbone.moe_every is {every}; it must be at least 1")
        if (slot.index + 1) % every:
            return super().fill(slot)
        experts = self.spec.experts
        hidden = experts.get("hidden")
        count = int(experts.get("count", DEFAULT_EXPERTS))
        bank = ExpertBank(
            experts.get("kind", "gelu"),
            num_experts=count,
            d_model=slot.d_model,
            d_hidden=self.dense_hidden(slot) if hidden is None else int(hidden),
            bias=bool(experts.get("bias", False)),
        )
        router_options, layer_options = self.split_options()
        if self.task.causal:
            # Over the whole batch, rows of other sequences would decide who is dropped.
            layer_options = {"capacity_group": "sequence", **layer_options}
        offered = {"positions": slot.positions, "vocab_size": slot.vocab_size}
        # Routers are asked what they would do, so they stay real even where the rest is only counted.
        with torch.device("cpu"):
            router = build_router(
                self.spec.name, d_model=slot.d_model, num_experts=count, **{**self._wanted(offered), **router_options}
            )
        return MixtureLayer(router, bank, **layer_options)

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        super().build(task, seed, sizing=sizing)
        if not sizing:
            # After the initial values are drawn, which a router's table may be one of.
            for layer in self.mixtures:
                layer.router.calibrate(token_counts=task.token_counts)
        if not self.mixtures:
            raise ValueError(
                f"backbone.moe_every is {self.spec.backbone.get('moe_every')}, more than there are layers, so none is routed"
            )
        if self.leaks is not None and not self.spec.router.get("allow_leak", False):
            raise UsageError(
                f"router {self.spec.name!r} lets an output depend on later tokens, which task {task.name!r} forbids; "
                f"causal routers: {', '.join(causal_routers(self.mixtures[0]))}{self._causal_settings()}; "
                f"router.allow_leak=true overrides"
            )

    def _causal_settings(self) -> str:
        """Settings of this very router that see no later token, for the refusal's sentence."""
        found, layer, own = [], self.mixtures[0], option_names(ROUTERS.get(self.spec.name)) or []
        if layer.router.causal and "capacity_factor" not in own:
            found.append("router.capacity_factor=null")
        if "across" in own:
            found.append("router.across=batch")
        return f", or {self.spec.name} with {' or '.join(found)}" if found else ""

    def split_options(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of the router, and options of the layer around it."""
        own = option_names(ROUTERS.get(self.spec.name))
        router, layer = {}, {}
        for key, value in self.spec.router.items():
            if key in ARM_OPTIONS:
                continue
            if key in LAYER_OPTIONS and (own is None or key not in own):
                layer[key] = value
            elif own is not None and key not in own:
                raise unknown(
                    f"option of router {self.spec.name!r}: router.{key} names", key, [*own, *LAYER_OPTIONS, *ARM_OPTIONS]
                )
            else:
                router[key] = value
        return router, layer

    def loss_weights(self) -> dict[str, float]:
        defaults = dict(ROUTERS.get(self.spec.name).loss_weights)
        given = dict(self.spec.router.get("loss_weights") or {})
        for name in given:
            if name not in defaults:
                raise unknown(f"loss of router {self.spec.name!r}", name, defaults)
        return {**defaults, **given}

    def _wanted(self, offered: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(ROUTERS.get(self.spec.name)).parameters
        return {name: value for name, value in offered.items() if name in parameters}


def causal_routers(like: MixtureLayer) -> list[str]:
    """Routers that see no later token in a layer with this one's capacity settings."""
    found = []
    for name in ROUTERS.names():
        try:
            router: Router = build_router(name, d_model=like.experts.d_model, num_experts=like.experts.num_experts)
        except (UsageError, ValueError):
            continue
        # Settings that the arm was given stay; where it has the router's own, so would the other router.
        own = like.router
        factor = router.capacity_factor if like.capacity_factor == own.capacity_factor else like.capacity_factor
        priority = router.priority if like.priority == own.priority else like.priority
        if router.causal and (factor is None or priority == "position"):
            found.append(name)
    return found
