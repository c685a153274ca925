"""A linear map of the input: no layer to route, but an expert or a gate of the classic mixtures.

Axes: B examples, S positions, N numbers, V vocabulary, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from routelab.backbones.base import Backbone
from routelab.backbones.row_head import Row
from routelab.core.flops import Cost, matmul
from routelab.data.task import InputSpec
from routelab.routers.base import Routing, truncated_normal_


class Linear(Backbone):
    """Affine in the flattened numbers and in one-hot codes, which are looked up; for text, in the one-hot byte of the
    position alone, so that each position has outputs of its own and sees no other.

    Numbers start as torch's linear layers do, codes at 0, bytes at N(0, 0.1) cut at two deviations.
    """

    init_names: ClassVar[Mapping[str, str]] = {"row": "row", "numbers": "numbers", "bytes": "bytes", "bias": "bias"}

    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.d_model, self.positions = outputs, inputs.shape[0] if inputs.kind == "text" else 1
        self.bytes, self.row, self.numbers = None, None, None
        if inputs.vocab_size is not None:
            self.bytes = nn.Parameter(torch.zeros(inputs.vocab_size, outputs))
            return
        self.row = _Columns(InputSpec("table", (math.prod(inputs.shape),), categories=inputs.categories), outputs)
        self.numbers = nn.Linear(self.row.numbers, outputs, bias=False) if self.row.numbers else None
        self.bias = nn.Parameter(torch.zeros(outputs))

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Of the bytes; the bias stays 0, and the parts draw their own."""
        if self.bytes is not None:
            truncated_normal_(self.bytes, 0.1, generator("bytes"))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Routing]]:
        """(B, ...) -> (B, K), or (B, S) -> (B, S, K)."""
        if self.bytes is not None:
            return self.bytes[x.long()], []
        assert self.row is not None
        numbers_BN, embedded = self.row(x.flatten(1))
        out = self.bias if self.numbers is None else self.numbers(numbers_BN) + self.bias
        return (out if embedded is None else out + embedded.sum(1)), []

    def cost(self, examples: int) -> Cost:
        """Looking codes up is no product."""
        numbers = 0 if self.row is None else self.row.numbers
        return matmul(examples, numbers, self.outputs, input_gradient=False)


class _Columns(Row):
    """Codes of a linear map start at 0: none is known yet to mean anything."""

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        pass
