"""A transformer over the features of a table's row.

Axes: B examples, S = F features, N numbers among them, D features of the model, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from routelab.backbones.attention import Block, Blocks
from routelab.backbones.base import Backbone, FeedForwardFactory, Slot
from routelab.backbones.row_head import Row
from routelab.core.flops import Cost, matmul
from routelab.data.task import InputSpec
from routelab.experts.feed_forward import check_sizes
from routelab.routers.base import Routing, truncated_normal_


class Tokens(Backbone):
    """Feature-token transformer: each feature of a row is a token, a row is a group of them (Gorishniy 2021, FT-Transformer).

    A number x_j becomes x_j * weight_j + bias_j, a code its embedding + bias_j (§3.3, eq. 1); pre-norm blocks follow.
    Two departures from the paper: the tokens are averaged instead of read from a [CLS] token, for in the last block all
    tokens but that one would be routed, and paid for, without any effect on the output; and the first block keeps its norm.

    Options: `d_model` (64), `depth` (3), `heads` (4).
    """

    init_names: ClassVar[Mapping[str, str]] = {
        "row": "row",
        "weight": "weight",
        "bias": "bias",
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
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__(inputs, outputs)
        check_sizes(d_model=d_model, depth=depth, heads=heads)
        if inputs.kind != "table":
            raise ValueError(f"tokens reads tables; this data has the kind {inputs.kind!r}")
        self.d_model, self.positions = d_model, inputs.shape[0]
        self.row = Row(inputs, d_model)
        self.weight = nn.Parameter(torch.zeros(self.row.numbers, d_model)) if self.row.numbers else None
        self.bias = nn.Parameter(torch.zeros(self.positions, d_model))
        self.blocks = Blocks(
            Block(d_model, heads, feed_forward(Slot(index, d_model, self.positions, whole_block=True)))
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, outputs)

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Weights and biases of the tokens start at N(0, 1/D) cut at two deviations; the parts draw their own."""
        for name in ("weight", "bias"):
            parameter = getattr(self, name)
            if parameter is not None:
                truncated_normal_(parameter, self.d_model**-0.5, generator(name))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Routing]]:
        """(B, F) -> (B, K)."""
        numbers_BN, embedded = self.row(x)
        parts = [] if self.weight is None else [numbers_BN.unsqueeze(-1) * self.weight]
        hidden = torch.cat([*parts, *([] if embedded is None else [embedded])], dim=1) + self.bias
        hidden, routings = self.blocks(hidden)
        return self.head(self.norm(hidden).mean(1)), routings

    def cost(self, examples: int) -> Cost:
        """Making tokens is elementwise and costs no product."""
        return self.blocks.cost(examples, self.positions) + matmul(examples, self.d_model, self.outputs)

    def recomputed(self, examples: int) -> float:
        return self.blocks.recomputed(examples, self.positions)
