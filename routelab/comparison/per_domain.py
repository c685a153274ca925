"""What a comparison says of each domain of its data apart: losses, and paired differences from the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from routelab.core.intervals import mean_interval


def domains_of(
    records: Sequence[Mapping[str, Any]], label: str, reference: str | None, level: float
) -> dict[str, dict[str, Any]]:
    """Of one arm, domain by domain: `loss`, the interval of its mean, and `difference`, the interval of the paired
    difference in log loss from the reference (None for the reference itself). Not adjusted for the number of domains."""
    mine, base = (
        {r["seed"]: r["by_domain"] for r in records if r["arm"] == arm and r["status"] == "ok" and r.get("by_domain")}
        for arm in (label, reference)
    )
    found = {}
    for domain in next(iter(mine.values()), {}):
        logs = [{seed: math.log(max(each[domain]["loss"], 1e-12)) for seed, each in of.items()} for of in (mine, base)]
        paired = [logs[0][seed] - logs[1][seed] for seed in sorted(set(mine) & set(base))]
        found[domain] = {
            "loss": mean_interval([each[domain]["loss"] for each in mine.values()]).as_dict(),
            "difference": mean_interval(paired, 1 - level).as_dict() if paired and label != reference else None,
        }
    return found
