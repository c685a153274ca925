"""A vision transformer over patches.

Axes: B examples, S patches, D features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from routelab.backbones.attention import Block, Blocks
from routelab.backbones.base import Backbone, FeedForwardFactory, Slot
from routelab.core.flops import Cost, matmul
from routelab.data.task import InputSpec
from routelab.experts.feed_forward import check_sizes
from routelab.routers.base import Routing, truncated_normal_


class ViT(Backbone):
    """Vision transformer: square patches, learned positions, pre-norm blocks, mean pooling (Dosovitskiy 2020; Beyer 2022).

    Options: `d_model` (64), `depth` (4), `heads` (4), `patch_size` (4 pixels a side). An image is a group of patches.
    """

    init_names: ClassVar[Mapping[str, str]] = {
        "patch": "patch",
        "position": "position",
        "blocks": "blocks",
        "norm": "norm",
        "head": "head",
    }

    def __init__(
        self,
        inputs: InputSpec,
        outputs: int,
        feed_forward: FeedForwardFactory,
        *,
        d_model: int = 64,
        depth: int = 4,
        heads: int = 4,
        patch_size: int = 4,
    ) -> None:
        super().__init__(inputs, outputs)
        check_sizes(d_model=d_model, depth=depth, heads=heads, patch_size=patch_size)
        if inputs.kind != "image":
            raise ValueError(f"vit reads images; this data has the kind {inputs.kind!r}")
        channels, height, width = inputs.shape
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size is {patch_size}; it must divide the image's {height} x {width} pixels")
        self.d_model, self.patch_size = d_model, patch_size
        self.positions = (height // patch_size) * (width // patch_size)
        self.patch = nn.Linear(channels * patch_size**2, d_model)
        self.position = nn.Parameter(torch.zeros(self.positions, d_model))
        self.blocks = Blocks(
            Block(d_model, heads, feed_forward(Slot(index, d_model, self.positions, whole_block=True)))
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, outputs)

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Positions start at N(0, 0.02); the parts draw their own."""
        truncated_normal_(self.position, 0.02, generator("position"))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Routing]]:
        """(B, channels, height, width) -> (B, K)."""
        hidden = self.patch(patches(x, self.patch_size)) + self.position
        hidden, routings = self.blocks(hidden)
        return self.head(self.norm(hidden).mean(1)), routings

    def cost(self, examples: int) -> Cost:
        embed = matmul(examples * self.positions, self.patch.in_features, self.d_model, input_gradient=False)
        head = matmul(examples, self.d_model, self.outputs)
        return embed + self.blocks.cost(examples, self.positions) + head

    def recomputed(self, examples: int) -> float:
        return self.blocks.recomputed(examples, self.positions)


def patches(image: Tensor, size: int) -> Tensor:
    """(B, channels, height, width) -> (B, S, channels * size * size), patches row by row."""
    batch, channels, height, width = image.shape
    grid = image.reshape(batch, channels, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)
