"""Routed arms: the backbone with a mixture in every n-th feed-forward slot."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from routelab.backbones.backbone_registry import DEFAULT_FOR
from routelab.backbones.base import Slot
from routelab.backbones.mixture_of_depths_block import BlockMixture
from routelab.baselines.backbone_arm import SingleBackbone, whole
from routelab.baselines.base import ArmSpec
from routelab.core.errors import UsageError, unknown
from routelab.core.options import check_options, option_names
from routelab.data.task import Task
from routelab.experts.feed_forward import FeedForward, kind_named
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.experts.zero_compute import ZeroCompute
from routelab.routers.base import Router
from routelab.routers.build import build_router
from routelab.routers.capacity import Priority
from routelab.routers.plans import Ragged, TopK
from routelab.routers.router_registry import ROUTERS

LAYER_OPTIONS = ("capacity_factor", "eval_capacity_factor", "capacity_group", "priority", "kernel", "latent_dim")
"""Keys of the router section that belong to the layer, unless the router itself takes an option of that name."""

ARM_OPTIONS = ("loss_weights", "allow_leak")

DEFAULT_EXPERTS = 8

ZERO_COMPUTE = ("zero", "copy", "constant")
"""Keys of the experts section that count zero-compute experts, in the order in which they follow the real ones."""


class Routed(SingleBackbone):
    """The backbone with mixture layers routed by the router of the arm's name.

    `experts.count` experts of width `experts.hidden` (None: as wide as the dense feed-forward, unless matching sizes it)
    in every `backbone.moe_every`-th layer (None: the router's own, mostly 1, or 1 if that is more than there are), counted
    from the end of each run of n; the other layers stay dense. Beside them `experts.shared` more (None: the router's own
    number, mostly 0) take every token: one feed-forward, that many times as wide, whose output is added with weight 1 (Dai
    et al. 2024, DeepSeekMoE, eq. 9).

    `experts.rank` makes the experts low-rank updates of one feed-forward of the kind (None: as the kind says). `experts.zero`,
    `experts.copy` and `experts.constant` count zero-compute experts (None: the router's own numbers, mostly 0), which the
    router chooses among like the others, and which cost next to nothing; `experts.count` leaves them out.
    `router.latent_dim` lets the experts work on that many features, between two projections (not set: the router's own, mostly
    all features; null: all features).

    Causal tasks count capacity by the sequence unless `router.capacity_group` says otherwise. Routers that leak (see later
    tokens in a causal task, or other examples where a batch is one group) are refused unless `router.allow_leak` is true.
    A router of whole blocks (`Router.whole_block`) has one expert, whatever `experts.count` says: the block, whose feed-forward
    is `experts.hidden` wide. Where only training sees later tokens (`Router.causal_predictor`) the arm is taken, and marked.
    A router's option `init_scale` goes to the feed-forwards too: it is a scale for the layer, not for the gate alone.
    """

    knobs = ("experts.hidden",)

    @classmethod
    def suggest(cls, trial: Any, spec: ArmSpec) -> dict[str, Any]:
        """The number of experts, but where whole blocks are routed, which have one. Matching keeps the work equal."""
        if ROUTERS.get(spec.name).whole_block:
            return {}
        return {"experts.count": trial.suggest_categorical("experts.count", [4, 8, 16])}

    def fill(self, slot: Slot) -> FeedForward | MixtureLayer:
        if (slot.index + 1) % self.every:
            return super().fill(slot)
        whole_block = ROUTERS.get(self.spec.name).whole_block
        if whole_block and not slot.whole_block:
            raise ValueError(
                f"it routes whole blocks of attention and feed-forward, which backbone {self.backbone_name(self.task)!r} has none "
                f"of; backbones that have: {', '.join(sorted(DEFAULT_FOR.values()))}"
            )
        experts = self.spec.experts
        count = 1 if whole_block else whole("experts.count", experts.get("count", DEFAULT_EXPERTS))
        width, rank = self.hidden(slot), experts.get("rank")
        router_options, layer_options = self.split_options()
        check_options(f"arm {self.spec.name!r}", MixtureLayer, layer_options, first=3)
        ratio = ROUTERS.get(self.spec.name).latent_ratio
        if ratio > 1:
            layer_options = {"latent_dim": max(1, slot.d_model // ratio), **layer_options}
        latent = layer_options.get("latent_dim")
        bank = ExpertBank(
            self.kind,
            num_experts=count,
            d_model=slot.d_model if latent is None else whole("router.latent_dim", latent),
            d_hidden=width,
            bias=self.bias,
            init_scale=self.init_scale,
            rank=None if rank is None else whole("experts.rank", rank),
        )
        free = self.zero_compute(count)
        if whole_block and (free or latent is not None):
            what = f"experts.{free[0]} is {free.count(free[0])}" if free else f"router.latent_dim is {latent}"
            raise ValueError(f"{what}; whole blocks as experts know neither zero-compute experts nor a latent space")
        if self.task.causal:
            # Over the whole batch, rows of other sequences would decide who is dropped.
            layer_options = {"capacity_group": "sequence", **layer_options}
        before = self.mixtures
        offered = {
            "positions": slot.positions,
            "vocab_size": slot.vocab_size,
            "zero_compute": len(free),
            "follows": bool(before),
        }
        # Routers are asked what they would do, so they stay real even where the rest is only counted.
        with torch.device("cpu"):
            router = build_router(
                self.spec.name,
                d_model=slot.d_model,
                num_experts=count + len(free),
                **{**self._wanted(offered), **router_options},
            )
        for name in ("capacity_factor", "eval_capacity_factor"):
            if layer_options.get(name) is not None and not isinstance(router.probe_plan(1, 2), (TopK, Ragged)):
                raise ValueError(
                    f"router.{name} is {layer_options[name]}; capacity limits the choices of tokens, and the plan of "
                    "this router has a size of its own: leave it out"
                )
        always = self.shared(router)
        if whole_block:
            if always:
                raise ValueError(f"experts.shared is {always}; beside whole blocks there is no place for shared experts")
            return BlockMixture(router, bank, **layer_options)
        shared = None
        if always:
            # However many linear maps, their sum is one.
            wide = None if width is None else always * width
            shared = FeedForward(self.kind, slot.d_model, wide, self.bias, init_scale=self.init_scale)
        beside = ZeroCompute(slot.d_model, free) if free else None
        layer = MixtureLayer(router, bank, shared, zero_compute=beside, **layer_options)
        if router.follows and before:
            layer.follow(before[-1])
        return layer

    def hidden(self, slot: Slot) -> int | None:
        """`experts.hidden`, by default the width of the dense feed-forward; None for kinds without a hidden layer."""
        hidden = self.spec.experts.get("hidden")
        if kind_named(self.kind).has_hidden:
            return self.dense_hidden(slot) if hidden is None else whole("experts.hidden", hidden)
        if hidden is not None:
            raise ValueError(f"experts.hidden is {hidden!r}; experts of kind {self.kind!r} have no hidden width: leave it null")
        return None

    def zero_compute(self, count: int) -> list[str]:
        """The kinds of the zero-compute experts beside `count` real ones."""
        own = ROUTERS.get(self.spec.name).zero_compute_kinds(count)
        found: list[str] = []
        for kind in ZERO_COMPUTE:
            given = self.spec.experts.get(kind)
            number = own.get(kind, 0) if given is None else given
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise ValueError(
                    f"experts.{kind} is {number!r}; it must be a whole number of at least 0, or null for the router's own"
                )
            found += [kind] * number
        return found

    @property
    def every(self) -> int:
        """Every how many-th layer is routed."""
        every = self.spec.backbone.get("moe_every")
        return ROUTERS.get(self.spec.name).every if every is None else whole("backbone.moe_every", every)

    def shared(self, router: Router) -> int:
        """How many experts take every token."""
        shared = self.spec.experts.get("shared")
        if shared is None:
            return router.shared_experts
        if isinstance(shared, bool) or not isinstance(shared, int) or shared < 0:
            raise ValueError(
                f"experts.shared is {shared!r}; it must be a whole number of at least 0, or null for the router's own"
            )
        return shared

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        super().build(task, seed, sizing=sizing)
        if not self.mixtures and self.spec.backbone.get("moe_every") is None:
            # A model too shallow for the router's own rhythm.
            self.spec = self.spec.with_value("backbone.moe_every", 1)
            super().build(task, seed, sizing=sizing)
        offered = self.offered()
        for layer in self.mixtures:
            for name in layer.router.needs:
                if offered[name] is None:
                    raise ValueError(
                        f"the router under these options needs {name.replace('_', ' ')}, which "
                        f"{f'data {task.name!r}' if name == 'token_counts' else 'this backbone'} does not offer"
                    )
        if not sizing:
            # After the initial values are drawn, which a router's table may be one of.
            self.calibrate(self.mixtures)
        if not self.mixtures:
            raise ValueError(f"backbone.moe_every is {self.every}, more than there are layers, so none is routed")
        self.loss_weights()
        allowed = self.spec.router.get("allow_leak")
        if allowed is not None and not isinstance(allowed, bool):
            raise ValueError(f"router.allow_leak is {allowed!r}; it must be true or false")
        if self.leaks is not None and not allowed:
            raise UsageError(self._refusal(task))

    def _refusal(self, task: Task) -> str:
        """Why this arm would leak, and what would not."""
        layer, override = self.mixtures[0], "router.allow_leak=true overrides"
        if self.leaks == "later tokens":
            return (
                f"router {self.spec.name!r} lets an output depend on later tokens, which task {task.name!r} forbids; "
                f"causal routers: {', '.join(causal_routers(layer))}{self._causal_settings()}; {override}"
            )
        backbone, other = self.backbone_name(task), DEFAULT_FOR[task.inputs.kind]
        forbidden = (
            f"lets an example's output depend on the rest of its batch, which backbone {backbone!r} forbids in evaluation"
        )
        if layer.router.per_token:
            return (
                f"router.eval_capacity_factor={layer.eval_capacity_factor} {forbidden}; "
                f"leave it null, or take backbone={other}; {override}"
            )
        return (
            f"router {self.spec.name!r} {forbidden}; routers that do not: {', '.join(per_token_routers(layer))}; "
            f"or take backbone={other}; {override}"
        )

    @property
    def init_scale(self) -> float:
        scale = self.spec.router.get("init_scale")
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
            raise ValueError(f"init_scale is {scale!r}; it must be a number")
        return 1.0 if scale is None else float(scale)

    def _causal_settings(self) -> str:
        """Settings of this very router that see no later token, for the refusal's sentence."""
        found, layer, own = [], self.mixtures[0], option_names(ROUTERS.get(self.spec.name)) or []
        if layer.router.causal and "capacity_factor" not in own:
            found.append("router.capacity_factor=null")
        if "across" in own:
            found.append("router.across=batch")
        if "predictor" in own:
            found.append("router.predictor=router")
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
                raise unknown(f"option of router {self.spec.name!r}", key, [*own, *LAYER_OPTIONS, *ARM_OPTIONS])
            else:
                router[key] = value
        return router, layer

    def loss_weights(self) -> dict[str, float]:
        defaults = dict(self.mixtures[0].router.loss_weights)
        given = self.spec.router.get("loss_weights") or {}
        if not isinstance(given, Mapping):
            raise UsageError(
                f"router.loss_weights is {given!r}; it must hold a number for each of {', '.join(defaults) or 'no loss'}"
            )
        for name, weight in given.items():
            if name not in defaults:
                raise unknown(f"loss of router {self.spec.name!r}", name, defaults)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise UsageError(f"router.loss_weights.{name} is {weight!r}; it must be a number")
        return {**defaults, **given}

    def _wanted(self, offered: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(ROUTERS.get(self.spec.name)).parameters
        return {name: value for name, value in offered.items() if name in parameters}


def causal_routers(like: MixtureLayer) -> list[str]:
    """Routers that see no later token in a layer with this one's capacity settings."""
    return _routers_such_that(like, lambda layer: layer.causal)


def per_token_routers(like: MixtureLayer) -> list[str]:
    """Routers that choose for each token by itself in evaluation."""
    return _routers_such_that(like, lambda layer: layer.router.per_token and not layer.router.whole_block)


def _routers_such_that(like: MixtureLayer, legal: Callable[[MixtureLayer], bool]) -> list[str]:
    found = []
    for name in ROUTERS.names():
        own = like.router
        try:
            # Asked while an arm is sized, when everything else is on the meta device.
            with torch.device("cpu"):
                router: Router = build_router(name, d_model=like.experts.d_model, num_experts=like.experts.num_experts)
            # Settings that the arm was given stay; where it has the router's own, so would the other router.
            factor = router.capacity_factor if like.capacity_factor == own.capacity_factor else like.capacity_factor
            priority = router.priority if like.priority == own.priority else like.priority
            layer = MixtureLayer(
                router,
                like.experts,
                capacity_factor=factor,
                eval_capacity_factor=like.eval_capacity_factor,
                capacity_group=like.capacity_group,
                priority=cast(Priority, priority),
            )
        except (UsageError, ValueError):
            continue
        if legal(layer):
            found.append(name)
    return found
