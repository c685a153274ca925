"""Counts of floating-point operations (FLOPs).

A multiply-accumulate is 2 FLOPs everywhere. Only products (matmul, convolution, attention) are counted:
elementwise work is left out, as `torch.utils.flop_counter` leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """FLOPs of a forward pass and of the backward pass that follows it when training."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.forward * times, self.backward * times)

    __rmul__ = __mul__

    @property
    def training(self) -> float:
        """Forward and backward together."""
        return self.forward + self.backward


def matmul(rows: int, inner: int, columns: int, *, input_gradient: bool = True, weight_gradient: bool = True) -> Cost:
    """Cost of (rows, inner) @ (inner, columns); each operand that needs a gradient costs one more product."""
    product = 2.0 * rows * inner * columns
    return Cost(product, product * (int(input_gradient) + int(weight_gradient)))


@dataclass(frozen=True)
class Flops:
    """FLOPs of one call, which add up: `model` on the rows really assigned, `executed` with padding and recomputation."""

    model: float | Tensor = 0.0
    executed: float | Tensor = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.model + other.model, self.executed + other.executed)
