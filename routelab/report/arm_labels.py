"""Labels of arms in tables, plots and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def marked(label: str, given: Sequence[str] | None) -> str:
    """A label with its marks: "soft (leaks: later tokens)"."""
    return f"{label} ({', '.join(given)})" if given else label


def marks(record: Mapping[str, Any]) -> list[str]:
    """What must stand beside the name of a run wherever it is shown: what it leaks, if only in training, and whether its
    figures depend on the batch that it was evaluated in."""
    found = [f"leaks: {record['leaks']}"] if record.get("leaks") else []
    found += [f"training sees {record['leaks_in_training']}"] if record.get("leaks_in_training") else []
    return found + (["batch-coupled"] if record.get("evaluation_coupled") else [])
