"""Whole blocks as experts: a router that chooses which positions go through a block, attention included.

Axes: G groups, S positions, D features, C positions chosen in each group.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from routelab.core.flops import Cost
from routelab.experts.dispatch import rectangular
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Router, Routing
from routelab.routers.plans import PerExpert

if TYPE_CHECKING:
    from routelab.backbones.attention import Block

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles that `rotate` turns by: (S, H / 2), or (G, 1, S, H / 2) where groups differ."""


class BlockMixture(MixtureLayer):
    """What fills the feed-forward slot of a block that only some positions go through (Raposo et al. 2024, eq. 1).

    For the chosen, with their weight w: x + w * f(x), where f is what the block adds to its input, attention and
    feed-forward together, and attention is among the chosen of a group, in their order and at their own positions. For all
    others: x.

    router: one with `whole_block`, for one expert; it reads the positions as the block's attention does, normalised.
    experts: a bank of one, the block's feed-forward. The rest of the block is `enclose`d, and stays its own.
    """

    def __init__(self, router: Router, experts: ExpertBank, **options: Any) -> None:
        super().__init__(router, experts, **options)
        if router.num_experts != 1:
            raise ValueError(f"a router of whole blocks has one expert, the block; this one has {router.num_experts}")
        self._block: tuple[Block, ...] = ()

    def enclose(self, block: Block) -> None:
        """Called by the block around this layer. Held in a tuple: the block's parts are not parts of the layer."""
        self._block = (block,)

    def forward(
        self, x: Tensor, token_ids: Tensor | None = None, mask: Tensor | None = None, *, rotation: Rotation | None = None
    ) -> tuple[Tensor, Routing]:
        """(G, S, D), the input of the block -> its output. rotation: of the S positions."""
        (block,) = self._block
        groups, _, width = x.shape
        seen = block.attention_norm(x)
        routing = self.choose(seen, token_ids, mask)
        assert routing.work is not None
        position_GC, weight_GC, keep_GC = in_order(routing.plan)
        place_GCD = position_GC.unsqueeze(-1).expand(-1, -1, width)
        if rotation is not None:
            rotation = (rotation[0][position_GC].unsqueeze(1), rotation[1][position_GC].unsqueeze(1))
        mixed = block.attention(seen.gather(1, place_GCD), keep_GC, rotation=rotation)
        rows = block.feed_forward_norm(x.gather(1, place_GCD) + mixed)
        added = mixed + rectangular(self.experts, rows.flatten(0, 1).unsqueeze(0), self.kernel).view_as(rows)
        if keep_GC is not None:
            weight_GC = weight_GC * keep_GC
        out = x.scatter_add(1, place_GCD, (added * weight_GC.unsqueeze(-1)).to(x.dtype))
        pairs = groups * position_GC.shape[1] ** 2
        kept = pairs if keep_GC is None else _number(keep_GC.sum(1).square().sum())
        work = replace(routing.work, executed=position_GC.numel(), pairs_kept=kept, pairs_executed=pairs)
        return out, replace(routing, work=work)

    @property
    def row_cost(self) -> Cost:
        """FLOPs of one position's projections and feed-forward."""
        return self.experts.row_cost + self._attention.row_cost

    @property
    def pair_cost(self) -> Cost:
        return self._attention.pair_cost

    @property
    def pair_recomputed(self) -> float:
        return self._attention.pair_recomputed

    def nominal_cost(self, groups: int, positions: int) -> Cost:
        each = self.router.nominal_rows(groups, positions) / groups
        return super().nominal_cost(groups, positions) + self.pair_cost * (groups * each**2)

    def optional_parameters(self) -> list[nn.Parameter]:
        """Parameters of the whole block but the router's, and the norm that it reads too."""
        (block,) = self._block
        return [*super().optional_parameters(), *block.attention.parameters(), *block.feed_forward_norm.parameters()]

    @property
    def _attention(self) -> Any:
        return self._block[0].attention


def in_order(plan: object) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions, weights and `keep` (G, C) of a plan for one expert, by position, those not kept last."""
    if not isinstance(plan, PerExpert) or plan.weight_on != "output":
        raise ValueError(
            f"a router of whole blocks must return a PerExpert plan that weighs outputs; got {type(plan).__name__}"
        )
    position, weight = plan.position.squeeze(1), plan.weight.squeeze(1)
    keep = None if plan.keep is None else plan.keep.squeeze(1)
    late = position if keep is None else torch.where(keep, position, torch.iinfo(torch.int64).max)
    order = late.argsort(dim=1, stable=True)
    return position.gather(1, order), weight.gather(1, order), None if keep is None else keep.gather(1, order)


def _number(count: Tensor) -> int | Tensor:
    return int(count) if count.device.type == "cpu" else count
