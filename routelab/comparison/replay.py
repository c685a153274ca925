"""Replay of a recorded run, compared bit for bit, and differences between two recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from routelab.config.resolve import flatten
from routelab.core.errors import UsageError
from routelab.core.plugins import load_plugin
from routelab.data.base import load
from routelab.records.run_lookup import spec_of
from routelab.training.observer import CallbackObserver
from routelab.training.run import execute

_PLACES = ("platform", "python", "versions", "git_revision", "git_diff", "data_digest")


@dataclass(frozen=True)
class Replay:
    """A run trained again. difference: the first number that is not the same to the last bit, as (where, before, now), or
    None. points: how many points of the curve were compared. changed: what is not as it was when the run was recorded."""

    record: dict[str, Any]
    points: int
    difference: tuple[str, Any, Any] | None
    changed: dict[str, tuple[Any, Any]]


def replay(before: Mapping[str, Any], watch: Callable[[float], None] = lambda share: None) -> Replay:
    """Train a recorded run again and compare all its losses.

    Equal to the last bit on the same kind of machine, library versions and number of threads. A run with a budget in seconds
    has no fixed number of steps, so it is refused.
    """
    if before.get("status") != "ok":
        raise UsageError(
            f"run {before.get('arm')!r} with seed {before.get('seed')} failed, so there is nothing to compare with"
        )
    spec = spec_of(before)
    if spec.budget.seconds is not None:
        raise UsageError(f"budget.seconds={spec.budget.seconds:g} ends a run by the clock, so it has no replay")
    for plugin in spec.plugins:
        load_plugin(plugin)
    data = load(**spec.data)
    after = execute(spec, observer=CallbackObserver(watch), data=data).record
    if after["status"] != "ok":
        return Replay(after, 0, ("status", "ok", after["error"]), changes(before, after))
    differences = (each for each in _numbers(before, after) if each[1] != each[2])
    return Replay(after, len(before["curve"]), next(differences, None), changes(before, after))


def _numbers(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Every loss and metric of two records, side by side."""
    yield "points of the curve", len(before["curve"]), len(after["curve"])
    for old, new in zip(before["curve"], after["curve"], strict=False):
        for key in sorted(key for key in old if key.startswith(("train/", "val/")) or key in ("step", "flops")):
            yield f"{key} at step {old['step']}", old[key], new.get(key)
    for split in ("validation", "test"):
        for key, value in before[split].items():
            yield f"{split} {key}", value, after[split].get(key)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs in where two records come from: platform, versions, code, data."""
    origins = [record.get("provenance") or {} for record in (before, after)]
    return _differing(*(flatten({key: origin.get(key) for key in _PLACES}) for origin in origins))


def explain(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What differs between two recorded runs: `settings`, `origin` and `results`, each a dotted key -> (first, second)."""
    settings = [flatten({**record["config"], "arm.label": record["arm"]}) for record in (first, second)]
    results = [
        flatten({key: record.get(key) for key in ("status", "error", "steps", "test", "validation", *_COSTS)})
        for record in (first, second)
    ]
    return {
        "settings": _differing(*settings),
        "origin": changes(first, second),
        "results": _differing(*results),
    }


_COSTS = (
    "flops_model",
    "flops_executed",
    "initial_flops",
    "flops_per_example",
    "active_params",
    "total_params",
    "seconds",
    "drop_rate",
    "load_cv",
)


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys([*first, *second])
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}
