"""Values of metrics and the influence of each test unit on them, from sums by unit. Pure functions of numbers.

Every metric is a function f of the totals of a few sums, and multiplying all of them by a factor does not change it. The influence
of unit u is the linearisation U * sum_k df/dS_k x_ku (delta method); its mean over units is 0. A table row f + influence therefore
has the mean f, and its variance over units is U times the variance of f over samples of units.

Axes: U test units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sums = Mapping[str, Floats]
"""Column of the unit table -> its sums by unit, (U,)."""

SMALLEST_LOSS = 1e-12
"""Loss below which the logarithm of a loss is that of this number."""


def log_loss(sums: Sums) -> tuple[float, Floats]:
    """Return the logarithm of the mean loss, and the influence of each unit on it, (U,)."""
    loss_U, count_U = sums["loss"], sums["count"]
    loss, count = float(loss_U.sum()), float(count_U.sum())
    if loss <= SMALLEST_LOSS * count:
        return math.log(SMALLEST_LOSS), np.zeros_like(loss_U)
    return math.log(loss / count), len(loss_U) * (loss_U / loss - count_U / count)


def _ratio(numerator_U: Floats, denominator_U: Floats) -> tuple[float, Floats]:
    """Return the ratio of two totals, and the influence of each unit on it."""
    total = float(denominator_U.sum())
    value = float(numerator_U.sum()) / total
    return value, len(numerator_U) / total * (numerator_U - value * denominator_U)


def loss(sums: Sums) -> tuple[float, Floats]:
    """Return the mean loss, and the influence of each unit on it, (U,)."""
    return _ratio(sums["loss"], sums["count"])


def accuracy(sums: Sums) -> tuple[float, Floats]:
    """Return the accuracy, and the influence of each unit on it, (U,)."""
    return _ratio(sums["correct"], sums["count"])


def bits_per_byte(sums: Sums) -> tuple[float, Floats]:
    """Return the loss in bits for each byte, and the influence of each unit on it, (U,)."""
    return _ratio(sums["loss"] / math.log(2), sums["bytes"])


def r2(sums: Sums) -> tuple[float, Floats]:
    """Return R^2 = 1 - E / (Q - T^2 / N) over all columns of the targets, and the influence of each unit on it, (U,).

    E is the sum of squared errors, Q and T are the sums of squared targets and of targets, N counts values. Both E and the
    spread Q - T^2 / N are linearised. NaN if the targets are constant.
    """
    columns = [name.removeprefix("squared_error_") for name in sums if name.startswith("squared_error_")]
    error_U, square_U, target_U = (
        np.sum([sums[f"{name}_{column}"] for column in columns], 0) for name in ("squared_error", "target_square", "target")
    )
    count_U = sums["count"] * len(columns)
    error, square, target, count = (float(x_U.sum()) for x_U in (error_U, square_U, target_U, count_U))
    spread, mean = square - target**2 / count, target / count
    if not spread > 0:
        return math.nan, np.full_like(error_U, math.nan)
    influence_U = error_U / spread - error / spread**2 * (square_U - 2 * mean * target_U + mean**2 * count_U)
    return 1 - error / spread, -len(error_U) * influence_U


METRICS: Mapping[str, Callable[[Sums], tuple[float, Floats]]] = {
    "log_loss": log_loss,
    "loss": loss,
    "accuracy": accuracy,
    "bits_per_byte": bits_per_byte,
    "r2": r2,
}
"""Metric -> function from sums by unit to its value and the influence of each unit."""
