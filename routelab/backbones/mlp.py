"""A residual feed-forward network in which an example is one token.

Axes: B examples, which are the positions of a single group; D features of the model, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from routelab.backbones.base import Backbone, FeedForwardFactory, Slot
from routelab.backbones.row_head import Row
from routelab.core.flops import Cost, matmul
from routelab.data.task import InputSpec
from routelab.experts.feed_forward import check_sizes
from routelab.routers.base import Routing


class MLP(Backbone):
    """Residual pre-norm feed-forward blocks over a table's rows or flat images: an example is a token, the batch a group.

    x + feed_forward(norm(x)) in every block (the residual network of Gorishniy 2021, §3.2, with layer norm: batch norm
    would mix examples). A linear map reads the numbers; the embeddings of a row's codes are added to it. Because a group
    is the batch, routers whose evaluation looks at other tokens are refused.

    Options: `d_model` (64), `depth` (3).
    """

    init_names: ClassVar[Mapping[str, str]] = {
        "row": "row",
        "numbers": "numbers",
        "blocks": "blocks",
        "norm": "norm",
        "head": "head",
    }

    batch_is_group = True
    positions = 1

    def __init__(
        self, inputs: InputSpec, outputs: int, feed_forward: FeedForwardFactory, *, d_model: int = 64, depth: int = 3
    ) -> None:
        super().__init__(inputs, outputs)
        check_sizes(d_model=d_model, depth=depth)
        if inputs.kind not in ("table", "image"):
            raise ValueError(f"mlp reads tables and images; this data has the kind {inputs.kind!r}")
        self.d_model = d_model
        flat = InputSpec("table", (math.prod(inputs.shape),), categories=inputs.categories)
        self.row = Row(flat, d_model)
        self.numbers = nn.Linear(self.row.numbers, d_model) if self.row.numbers else None
        self.blocks = nn.ModuleList(ResidualBlock(d_model, feed_forward(Slot(index, d_model, 1))) for index in range(depth))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Routing]]:
        """(B, F) or (B, channels, height, width) -> (B, K); further axes may come before B, if there is no mixture."""
        numbers, embedded = self.row(x.flatten(-len(self.inputs.shape)))
        hidden = 0.0 if self.numbers is None else self.numbers(numbers)
        if embedded is not None:
            hidden = hidden + embedded.sum(-2)
        routings = []
        for block in self.blocks:
            hidden, routing = block(hidden)
            if routing is not None:
                routings.append(routing)
        return self.head(self.norm(hidden)), routings

    def cost(self, examples: int) -> Cost:
        read = matmul(examples, self.row.numbers, self.d_model, input_gradient=False)
        return read + matmul(examples, self.d_model, self.outputs)


class ResidualBlock(nn.Module):
    """x + feed_forward(norm(x)) for x (B, D), where the feed-forward may be a mixture: (B, D) is then one group."""

    init_names: ClassVar[Mapping[str, str]] = {"norm": "norm", "feed_forward": "feed_forward"}

    def __init__(self, d_model: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> tuple[Tensor, Routing | None]:
        if not getattr(self.feed_forward, "routes", False):
            return x + self.feed_forward(self.norm(x)), None
        out, routing = self.feed_forward(self.norm(x))
        return x + out, routing
