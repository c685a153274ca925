"""The ledger: what a run has spent, and the formulas that torch's counter lacks (accounting.md §1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from routelab.core.flops import Flops


@dataclass
class Ledger:
    """FLOPs so far. model and executed: training; evaluation: forward passes on validation and test, kept apart.

    Additions may be tensors on a GPU; reading a total is what waits for them.
    """

    model: float | Tensor = 0.0
    executed: float | Tensor = 0.0
    evaluation: float | Tensor = 0.0

    def add(self, flops: Flops) -> None:
        """Charge a training call."""
        self.model = self.model + _double(flops.model)
        self.executed = self.executed + _double(flops.executed)

    def add_evaluation(self, flops: Flops) -> None:
        """Charge an evaluation call."""
        self.evaluation = self.evaluation + _double(flops.model)


def _double(value: float | Tensor) -> float | Tensor:
    # Row counts are int64 and their products with FLOPs per row float32, which is exact to 1e7 only.
    return value.double() if isinstance(value, Tensor) else value


def _grouped_mm(a_shape: Any, b_shape: Any, *_: Any, **__: Any) -> int:
    """(M, K) x (E, K, N) -> (M, N), or the weight gradient (K, M) x (M, N) -> (E, K, N): 2 M K N either way."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    batch, heads, rows, width = query
    return 4 * batch * heads * rows * key[2] * width


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Four products for the gradients, and the scores once more."""
    batch, heads, rows, width = query
    return 10 * batch * heads * rows * key[2] * width


def counter_formulas() -> dict[Any, Callable[..., int]]:
    """For `FlopCounterMode(custom_mapping=...)`: the operations that it would count as 0."""
    ops = torch.ops.aten
    return {
        ops._grouped_mm: _grouped_mm,
        ops._scaled_dot_product_flash_attention_for_cpu: _attention,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
