"""Values derived from one record: points of its curve, and its training FLOPs with those of its parents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def spent(record: Mapping[str, Any]) -> float:
    """Training FLOPs of a run, with those of the runs that it builds on: a dense model from scratch has nothing for free either."""
    return float(record["flops_model"]) + float(record.get("initial_flops") or 0.0)


def curve_points(record: Mapping[str, Any], x: str = "flops") -> list[tuple[float, float]]:
    """(x, validation loss) of every finite point of a run's curve with x above 0; x: flops or seconds."""
    found = ((point.get(x), point.get("val/loss")) for point in record.get("curve") or ())
    pairs = [(float(a), float(b)) for a, b in found if a is not None and b is not None]
    return [(a, b) for a, b in pairs if a > 0 and math.isfinite(a) and math.isfinite(b)]
