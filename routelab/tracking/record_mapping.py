"""What a record becomes in a tracking store: tags, parameters and numbers under keys that the store takes. Knows no mlflow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from routelab.core.number_format import finite

CELL_TAG = "routelab.cell"
"""The tag of a child run that holds its cell, the content address of (arm, seed, data, budget, code)."""

PARAM_LIMIT = 6000
NOTE_LIMIT = 5000
_COSTS = (
    "flops_model",
    "flops_executed",
    "initial_flops",
    "flops_per_example",
    "flops_per_example_measured",
    "active_params",
    "total_params",
    "seconds",
    "steps",
)


def provenance_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a record comes from; empty for one that never began."""
    return record.get("provenance") or {}


def tags_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What stands beside a run's numbers: how it ended, where it comes from, and what it leaks."""
    provenance = provenance_of(record)
    status = str(record.get("status", "failed"))
    tags = {
        "routelab.status": status,
        CELL_TAG: provenance.get("cell"),
        "routelab.git_revision": provenance.get("git_revision"),
        "mlflow.source.git.commit": provenance.get("git_revision"),
        "routelab.git_dirty": str(bool(provenance.get("git_diff"))).lower(),
        "routelab.data_digest": provenance.get("data_digest"),
        "routelab.python": provenance.get("python"),
        "routelab.command": provenance.get("command"),
        "routelab.versions": json.dumps(provenance["versions"], default=str) if provenance.get("versions") else None,
        "routelab.metric": record.get("metric"),
        "routelab.causal": record.get("causal"),
        "routelab.leaks": record.get("leaks"),
        "routelab.leaks_in_training": record.get("leaks_in_training"),
        "routelab.evaluation_coupled": record.get("evaluation_coupled"),
    }
    if record.get("leaks"):
        tags["mlflow.note.content"] = f"This run leaks: its outputs depend on {record['leaks']}, which its task forbids."
    if status != "ok":
        error = record.get("error") or "no reason was recorded"
        tags["routelab.error"] = error
        tags["mlflow.note.content"] = f"{status.capitalize()}: {error}"
    return {key: str(value)[:NOTE_LIMIT] for key, value in tags.items() if value is not None}


def params_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a run as dotted keys, with its arm, seed and data."""
    flat = flat_text(record.get("config") or {})
    for key in ("arm", "seed", "data"):
        if record.get(key) is not None:
            flat.setdefault(key, str(record[key])[:PARAM_LIMIT])
    if record.get("leaks"):
        flat["leaks"] = str(record["leaks"])[:PARAM_LIMIT]
    return flat


def flat_text(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.c` to text; lists, and what is in them, as JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flat_text(value, f"{key}."))
        else:
            text = json.dumps(value, default=str) if isinstance(value, Mapping | list | tuple) else str(value)
            # An empty value is refused by some stores.
            flat[store_key(key)] = text[:PARAM_LIMIT] or '""'
    return flat


class Values:
    """Numbers on their way into the store as (key, value, milliseconds, step), and how many were not finite."""

    def __init__(self, start: int) -> None:
        self.start, self.dropped = start, 0
        self.found: list[tuple[str, float, int, int]] = []

    def add(self, key: str, value: object, seconds: float, step: int) -> None:
        number = finite(value)
        if number is not None:
            self.found.append((store_key(key), number, self.start + int(1000 * seconds), step))
        elif value is not None and not isinstance(value, str):
            self.dropped += 1


def totals_of(record: Mapping[str, Any], start: int) -> Values:
    """The numbers of a record that stand once: quality, cost, telemetry at the end."""
    values = Values(start)
    seconds = finite(record.get("seconds")) or 0.0
    points = record.get("curve") or []
    last = int(finite(record.get("steps")) or (finite(points[-1].get("step")) if points else 0.0) or 0)
    for group in ("test", "validation", "telemetry", "calibration", "diversity", "figures"):
        for key, value in (record.get(group) or {}).items():
            for place, number in enumerate(value) if isinstance(value, list) else [(None, value)]:
                values.add(f"{group}/{key}" if place is None else f"{group}/{key}.{place}", number, seconds, last)
    for domain, found in (record.get("by_domain") or {}).items():
        for key, value in found.items():
            values.add(f"test.{domain}/{key}", value, seconds, last)
    for key in _COSTS:
        values.add(f"cost/{key}", record.get(key), seconds, last)
    for key, value in (record.get("memory") or {}).items():
        values.add(f"memory/{key}", value, seconds, last)
    for key in ("drop_rate", "load_cv"):
        values.add(f"routing/{key}", record.get(key), seconds, last)
    return values


def store_key(key: object) -> str:
    """A key in the characters that MLflow takes: alphanumerics and `_ - . / : space`."""
    text = re.sub(r"[^A-Za-z0-9_\-./: ]", "_", str(key)).strip("/ ")[:250]
    return text or "_"
