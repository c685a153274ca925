"""What reads a table's row: its numbers, and the embeddings of its codes.

Axes: B examples, F features (N numbers and C codes), D features of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from routelab.data.task import InputSpec
from routelab.routers.base import truncated_normal_


class Row(nn.Module):
    """Splits rows (B, F) into numbers (B, N), and codes embedded by a table of their own feature's (B, C, D).

    Parameters: `codes` (sum of the categories, D), the tables of all features below each other; None without codes.
    """

    init_names: ClassVar[Mapping[str, str]] = {"codes": "codes"}

    numeric: Tensor
    coded: Tensor
    first: Tensor

    def __init__(self, inputs: InputSpec, d_model: int) -> None:
        super().__init__()
        (features,) = inputs.shape
        categories = inputs.categories or (0,) * features
        if len(categories) != features:
            raise ValueError(f"categories has {len(categories)} entries; it must have one for each of the {features} features")
        self.sizes = [size for size in categories if size]
        self.numbers = features - len(self.sizes)
        firsts = [sum(self.sizes[:index]) for index in range(len(self.sizes))]
        for name, values in {
            "numeric": [place for place, size in enumerate(categories) if not size],
            "coded": [place for place, size in enumerate(categories) if size],
            "first": firsts,
        }.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)
        self.codes = nn.Parameter(torch.zeros(sum(self.sizes), d_model)) if self.sizes else None

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """N(0, 1/D) cut at two deviations; code 0, which data sets keep for values not seen in training, starts at 0."""
        if self.codes is not None:
            truncated_normal_(self.codes, self.codes.shape[1] ** -0.5, generator("codes"))
            with torch.no_grad():
                self.codes[self.first] = 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, F) -> numbers (B, N), and embedded codes (B, C, D) or None; further axes may come before B."""
        if self.codes is None:
            return x, None
        place_BC = x.index_select(-1, self.coded).long() + self.first
        embedded = self.codes.index_select(0, place_BC.flatten()).view(*place_BC.shape, -1)
        return x.index_select(-1, self.numeric), embedded
