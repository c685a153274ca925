"""Self-attention and the pre-norm block that holds a feed-forward slot.

Axes: B examples, S positions, L positions that are cached already, D features, N heads, H features of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.backbones.mixture_of_depths_block import BlockMixture, Rotation
from routelab.core.flops import Cost, matmul
from routelab.routers.base import Routing


class KeyValues:
    """Keys and values of the positions that one attention has seen, so that a next position costs one row.

    room: the most positions that it will hold. Memory is taken at the first `extend`.
    """

    def __init__(self, room: int) -> None:
        self.room, self.length = room, 0
        self._held: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, N, S, H) keys and values; gives back all of them, (B, N, L + S, H). ValueError beyond `room`."""
        batch, heads, added, width = key.shape
        if self.length + added > self.room:
            raise ValueError(f"the cache holds {self.length} of {self.room} positions; {added} more do not fit")
        if self._held is None:
            self._held = key.new_empty(2, batch, heads, self.room, width)
        end = self.length + added
        self._held[0, :, :, self.length : end] = key
        self._held[1, :, :, self.length : end] = value
        self.length = end
        return self._held[0, :, :, :end], self._held[1, :, :, :end]


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani 2017) through torch's fused kernel. (B, S, D) -> (B, S, D).

    Options: `causal`: a position sees itself and earlier ones only; `bias` of the projections.
    """

    init_names: ClassVar[Mapping[str, str]] = {"qkv": "qkv", "out": "out"}

    def __init__(self, d_model: int, heads: int, *, causal: bool = False, bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or d_model % heads:
            raise ValueError(f"heads is {heads}; it must divide d_model ({d_model})")
        self.d_model, self.heads, self.causal = d_model, heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, rotation: Rotation | None = None, cache: KeyValues | None = None
    ) -> Tensor:
        """mask (B, L + S), True = real. rotation: of these S positions. cache: of the L positions before them."""
        batch, positions, _ = x.shape
        query, key, value = self.qkv(x).view(batch, positions, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        before = 0
        if cache is not None:
            before = cache.length
            key, value = cache.extend(key, value)
        allowed = None if mask is None else mask[:, None, None, :]
        # The kernel's own causal flag is the fast way, but it takes no mask and knows no earlier positions.
        flag = self.causal and allowed is None and not before
        if allowed is not None or (self.causal and not flag and positions > 1):
            here = torch.ones(positions, before + positions, dtype=torch.bool, device=x.device)
            earlier = here.tril(before) if self.causal else here
            # Padding sees itself, so that no row is left without a key.
            allowed = earlier if allowed is None else allowed & earlier | here.tril(before).triu(before)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=flag)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, positions, self.d_model))
        return out

    def cost(self, examples: int, positions: int) -> Cost:
        """FLOPs: four projections, and two products of (S, head) with (head, S) for each head.

        Causal attention is charged for the whole S x S square, as `FlopCounterMode` and published counts do, although a
        kernel may skip most of the half above the diagonal.
        """
        return self.row_cost * (examples * positions) + self.pair_cost * (examples * positions**2)

    @property
    def row_cost(self) -> Cost:
        """FLOPs of one position's projections."""
        return matmul(1, self.d_model, 4 * self.d_model)

    @property
    def pair_cost(self) -> Cost:
        """FLOPs of one position's look at another."""
        return 2 * matmul(1, self.d_model, 1)

    def recomputed(self, examples: int, positions: int) -> float:
        """The fused backward computes the scores once more."""
        return self.pair_recomputed * examples * positions**2

    @property
    def pair_recomputed(self) -> float:
        """The same for one position's look at another."""
        return matmul(1, self.d_model, 1).forward


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), where the feed-forward may be a mixture, or choose who goes
    through the block at all (`routelab.backbones.mixture_of_depths_block`).

    Options: those of the attention; `norm`: "layer" (Ba 2016) or "rms" (Zhang and Sennrich 2019).
    """

    init_names: ClassVar[Mapping[str, str]] = {
        "attention_norm": "attention_norm",
        "attention": "attention",
        "feed_forward_norm": "feed_forward_norm",
        "feed_forward": "feed_forward",
    }

    def __init__(
        self,
        d_model: int,
        heads: int,
        feed_forward: nn.Module,
        *,
        causal: bool = False,
        bias: bool = True,
        norm: Literal["layer", "rms"] = "layer",
    ) -> None:
        super().__init__()
        make = nn.LayerNorm if norm == "layer" else nn.RMSNorm
        self.attention_norm = make(d_model)
        self.attention = SelfAttention(d_model, heads, causal=causal, bias=bias)
        self.feed_forward_norm = make(d_model)
        self.feed_forward = feed_forward
        if isinstance(feed_forward, BlockMixture):
            feed_forward.enclose(self)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        token_ids: Tensor | None = None,
        rotation: Rotation | None = None,
        cache: KeyValues | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """token_ids (B, S), for routers that read them. mask (B, L + S) where L positions are cached."""
        here = None if mask is None else mask[:, -x.shape[1] :]
        if isinstance(self.feed_forward, BlockMixture):
            if cache is not None:
                raise ValueError(
                    "a block that only some positions go through keeps no cache of keys and values; use cache=False"
                )
            return self.feed_forward(x, token_ids, here, rotation=rotation)
        x = x + self.attention(self.attention_norm(x), mask, rotation=rotation, cache=cache)
        if not getattr(self.feed_forward, "routes", False):
            return x + self.feed_forward(self.feed_forward_norm(x)), None
        out, routing = self.feed_forward(self.feed_forward_norm(x), token_ids=token_ids, mask=here)
        return x + out, routing

    def cost(self, examples: int, positions: int) -> Cost:
        """FLOPs of everything but the feed-forward; none if that is a `BlockMixture`, whose rows hold them."""
        return Cost() if isinstance(self.feed_forward, BlockMixture) else self.attention.cost(examples, positions)

    def recomputed(self, examples: int, positions: int) -> float:
        """The part of them that a training step runs a second time."""
        return 0.0 if isinstance(self.feed_forward, BlockMixture) else self.attention.recomputed(examples, positions)


class Blocks(nn.ModuleList):
    """Blocks (a `Block` each), one after the other: the body of a transformer."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, caches: Sequence[KeyValues] = (), **given: Any
    ) -> tuple[Tensor, list[Routing]]:
        """As `Block.forward`, to which all else is given, with the routings of those that route. caches: one each, or none."""
        routings = []
        for index, block in enumerate(self):
            x, routing = block(x, mask, cache=caches[index] if caches else None, **given)
            if routing is not None:
                routings.append(routing)
        return x, routings

    def cost(self, examples: int, positions: int) -> Cost:
        """Summed over the blocks, see `Block.cost`."""
        return sum((block.cost(examples, positions) for block in self.each()), Cost())

    def recomputed(self, examples: int, positions: int) -> float:
        """Summed over the blocks, see `Block.recomputed`."""
        return sum(block.recomputed(examples, positions) for block in self.each())

    def each(self) -> list[Block]:
        """The blocks."""
        return [block for block in self if isinstance(block, Block)]


def rotation_of(first: int, positions: int, width: int, base: float, device: torch.device | None = None) -> Rotation:
    """Angles m * base^(-2 i / H) for positions m = first ... and pairs i (Su et al. 2021, RoFormer, eq. 15), in float32."""
    pair = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    place = torch.arange(first, first + positions, device=device, dtype=torch.float32)
    angle = torch.outer(place, base ** (-pair / width))
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of features by its position's angle (Su et al. 2021, eq. 34). (B, N, S, H) -> the same.

    A pair is (i, i + H/2) instead of the paper's (2i, 2i + 1): a fixed permutation of the features, which the projections
    before it learn just as well.
    """
    cosine, sine = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)
