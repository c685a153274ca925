"""Values of metrics and the influence of each test unit on them, from sums by unit. Pure functions of numbers.

Every metric is a function f of the totals of a few sums. Let f_(-u) be the metric without unit u. The influence of unit u is that
of the delete-one jackknife, (U - 1) (mean_v f_(-v) - f_(-u)), and its mean over units is 0. A table row f + influence therefore
has the mean f. Its variance over units, divided by U, is the jackknife variance of f over samples of units (Efron & Stein 1981).
If few units carry most of a loss, this variance is closer to that of a bootstrap than the linearisation's.

Axes: U test units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sums = Mapping[str, Floats]
"""Column of the unit table -> its sums by unit, (U,), or -> totals."""

SMALLEST_LOSS = 1e-12
"""Loss below which the logarithm of a loss is that of this number."""


def metric_with_influence(metric: str, sums: Sums) -> tuple[float, Floats]:
    """Return a metric, and the influence of each unit on it.

    Args:
        metric: Key of `METRICS`.
        sums: Sums by unit, (U,) each, of all columns.

    Returns:
        The metric; the influence, (U,), which is 0 for a single unit.
    """
    compute = METRICS[metric]
    totals = {name: column_U.sum(keepdims=True) for name, column_U in sums.items()}
    units = len(sums["count"])
    value = float(compute(totals)[0])
    if units < 2:
        return value, np.zeros(units)
    without_U = compute({name: totals[name] - column_U for name, column_U in sums.items()})
    return value, (units - 1) * (without_U.mean() - without_U)


def loss(totals: Sums) -> Floats:
    """Return the mean loss."""
    return totals["loss"] / totals["count"]


def log_loss(totals: Sums) -> Floats:
    """Return the logarithm of the mean loss."""
    return np.log(np.maximum(loss(totals), SMALLEST_LOSS))


def accuracy(totals: Sums) -> Floats:
    """Return the accuracy."""
    return totals["correct"] / totals["count"]


def bits_per_byte(totals: Sums) -> Floats:
    """Return the loss in bits for each byte."""
    return totals["loss"] / (math.log(2) * totals["bytes"])


def r2(totals: Sums) -> Floats:
    """Return R^2 = 1 - E / (Q - T^2 / N) over all columns of the targets; NaN if the targets are constant.

    E is the sum of squared errors, Q and T are the sums of squared targets and of targets, N counts values.
    """
    columns = [name.removeprefix("squared_error_") for name in totals if name.startswith("squared_error_")]
    error, square, target = (
        np.sum([totals[f"{name}_{column}"] for column in columns], 0) for name in ("squared_error", "target_square", "target")
    )
    spread = square - target**2 / (totals["count"] * len(columns))
    return 1 - error / np.where(spread > 0, spread, math.nan)


METRICS: Mapping[str, Callable[[Sums], Floats]] = {
    "log_loss": log_loss,
    "loss": loss,
    "accuracy": accuracy,
    "bits_per_byte": bits_per_byte,
    "r2": r2,
}
"""Metric -> function from totals to its value; totals may be arrays."""
