"""Self-attention and the pre-norm block that holds a feed-forward slot.

Axes: B examples, S positions, D features, N heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from routers.contract import Routing
from routers.cost import Cost, matmul


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani 2017) through torch's fused kernel. (B, S, D) -> (B, S, D)."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or d_model % heads:
            raise ValueError(f"heads is {heads}; it must divide d_model ({d_model})")
        self.d_model, self.heads = d_model, heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, positions, _ = x.shape
        query, key, value = self.qkv(x).view(batch, positions, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        keys = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, positions, self.d_model))
        return out

    def cost(self, examples: int, positions: int) -> Cost:
        """FLOPs: four projections, and two products of (S, head) with (head, S) for each head."""
        projections = matmul(examples * positions, self.d_model, 4 * self.d_model)
        return projections + 2 * examples * matmul(positions, self.d_model, positions)

    def recomputed(self, examples: int, positions: int) -> float:
        """The fused backward computes the scores once more."""
        return matmul(positions, self.d_model, positions).forward * examples


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), where the feed-forward may be a mixture."""

    def __init__(self, d_model: int, heads: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = SelfAttention(d_model, heads)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Routing | None]:
        x = x + self.attention(self.attention_norm(x), mask)
        if not getattr(self.feed_forward, "routes", False):
            return x + self.feed_forward(self.feed_forward_norm(x)), None
        out, routing = self.feed_forward(self.feed_forward_norm(x), mask=mask)
        return x + out, routing
