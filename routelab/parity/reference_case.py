"""A reference: a published block, the router that reproduces it, and the settings under which both are compared.

Axes: G groups, S positions, T = G * S tokens, D features, H hidden width, E experts, k choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from routelab.experts.feed_forward import FeedForward
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.parity.differences import Distance, Losses, Twin, copy_weights, distance, firm
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router


class Sizes(NamedTuple):
    """G, S, D, H, E."""

    groups: int
    positions: int
    width: int
    hidden: int
    experts: int


SMALL, WIDE = Sizes(3, 12, 16, 24, 8), Sizes(2, 33, 40, 56, 16)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Reference:
    """A published block, the router that reproduces it, and the settings under which both are compared.

    package: what to install and what `version` is asked of. build(sizes, generator, **options) makes the Twin, which is put
    in training or evaluation as the option `training` of a case says (True unless it does).
    """

    router: str
    name: str
    package: str
    build: Callable[..., Twin]
    cases: tuple[Mapping[str, Any], ...] = ({},)
    sizes: tuple[Sizes, ...] = (SMALL, WIDE)

    def distance(self, seeds: tuple[int, ...] = SEEDS) -> Distance:
        """The largest differences over all sizes, cases and seeds."""
        worst = None
        for sizes in self.sizes:
            for case in self.cases:
                for seed in seeds:
                    found = self.one(sizes, seed, **case)
                    worst = found if worst is None else worst | found
        assert worst is not None
        return worst

    def one(self, sizes: Sizes, seed: int, *, training: bool = True, **options: Any) -> Distance:
        """The difference for one size and case, with weights and tokens drawn from the seed."""
        generator = torch.Generator().manual_seed(seed)
        # Constructors draw too; what they draw is overwritten, and must not move the caller's random state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            twin = self.build(sizes, generator, **options)
            for module in (twin.block, twin.layer):
                module.train(training)
            copy_weights(twin)
            while not firm(twin.layer, x := torch.randn(sizes.groups, sizes.positions, sizes.width, generator=generator)):
                pass
            return distance(twin, x, seed)


def draw(block: nn.Module, sizes: Sizes, generator: torch.Generator) -> nn.Module:
    """Fill every parameter of the block from N(0, 1.2^2 / D), so that logits, and outputs, are of the size of 1."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=1.2 * sizes.width**-0.5, generator=generator)
    return block


def layer_of(
    router: str, sizes: Sizes, kind: str, *, bias: bool = False, shared: int = 0, layer: Mapping[str, Any] = {}, **options: Any
) -> MixtureLayer:
    """A dropless layer here, unless `layer` says otherwise. shared: the width of a shared expert of the same kind."""
    routed = build_router(router, d_model=sizes.width, num_experts=sizes.experts, **options)
    bank = ExpertBank(kind, num_experts=sizes.experts, d_model=sizes.width, d_hidden=sizes.hidden, bias=bias)
    always = FeedForward(kind, sizes.width, shared) if shared else None
    return MixtureLayer(routed, bank, always, **{"capacity_factor": None, **layer})


def of_room(sizes: Sizes, room: int | None, k: int) -> dict[str, Any]:
    """Layer options that leave `room` rows per expert and sequence, in training and in evaluation."""
    if room is None:
        return {}
    factor = room * sizes.experts / (k * sizes.positions)
    return {"capacity_factor": factor, "eval_capacity_factor": factor, "capacity_group": "sequence"}


def plain(layer: MixtureLayer) -> Callable[[Tensor], tuple[Tensor, Losses]]:
    """Call the layer on all groups at once."""

    def call(x: Tensor) -> tuple[Tensor, Losses]:
        out, routing = layer(x)
        return out, routing.losses

    return call


def losses_by_group(layer: MixtureLayer) -> Callable[[Tensor], tuple[Tensor, Losses]]:
    """As `plain`, with the losses of each group by itself, averaged: the convention of codes that pool no sequences."""

    def call(x: Tensor) -> tuple[Tensor, Losses]:
        out, _ = layer(x)
        each = [layer.router(RouterInput(group.unsqueeze(0))).losses for group in x]
        return out, {name: torch.stack([losses[name] for losses in each]).mean() for name in each[0]}

    return call


def only_output(block: nn.Module) -> Callable[[Tensor], tuple[Tensor, Losses]]:
    """A block that returns its output, or its output first."""

    def call(x: Tensor) -> tuple[Tensor, Losses]:
        out = block(x)
        return (out[0] if isinstance(out, tuple) else out).view_as(x), {}

    return call
