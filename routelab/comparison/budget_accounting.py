"""Two readings of a comparison whose runs build on others: what those took is sunk, or it counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEARLY = 0.025
"""Ratios of FLOPs this near to 1 are called equal: the tolerance of matching is 0.02 by default."""

_STATES = {"better": "better", "worse": "worse", "equivalent": "as good", "open": "undecided", "withheld": "no verdict"}


def readings_of(arms: Mapping[str, Any], reference: str | None) -> dict[str, dict[str, float]]:
    """Training FLOPs of each arm over the reference's: `additional`, without those of the runs that they build on (weights that
    they began from, teachers), and `total`, with them. {} if no arm builds on a run, or there is no reference."""
    base = arms.get(reference or "")
    if base is None or not base["flops_model"] or not any(arm.get("initial_flops") for arm in arms.values()):
        return {}
    whole = base["flops_model"] + (base.get("initial_flops") or 0.0)
    return {
        label: {
            "additional": arm["flops_model"] / base["flops_model"],
            "total": (arm["flops_model"] + (arm.get("initial_flops") or 0.0)) / whole,
        }
        for label, arm in arms.items()
        if label != reference and arm["flops_model"]
    }


def readings_sentence(arms: Mapping[str, Any], reference: str | None, readings: Mapping[str, Mapping[str, float]]) -> str:
    """Which arms are to be read how; "" if there is nothing to tell apart."""
    if not readings:
        return ""
    parts = []
    for reading, words in (
        ("additional", "equal additional training FLOPs (what earlier runs took is sunk)"),
        ("total", "equal total training FLOPs (earlier runs' counted)"),
    ):
        equal = [label for label, ratio in readings.items() if abs(ratio[reading] - 1) <= NEARLY]
        judged = ", ".join(f"{label} ({_STATES.get(arms[label].get('state'), 'not judged')})" for label in equal)
        parts.append(f"at {words}: {judged or 'no arm'}")
    neither = [label for label, ratio in readings.items() if all(abs(value - 1) > NEARLY for value in ratio.values())]
    if neither:
        named = (
            f"{name} ({readings[name]['additional']:.2f}x additional, {readings[name]['total']:.2f}x total)" for name in neither
        )
        parts.append(f"at neither: {', '.join(named)}")
    return f" Beside {reference}, {'; '.join(parts)}."
