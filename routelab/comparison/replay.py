"""Recorded runs again: found by their names, trained anew and compared bit for bit, or set side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.contract import ArmSpec
from baselines.recorded import Recorded
from routelab.comparison.cells import cell_folder
from routelab.data.contract import load
from routelab.training.config import flatten
from routelab.training.loop import WEIGHTS, RunSpec, execute
from routelab.training.module import Observer
from routelab.training.record import read_json
from routelab.training.settings import Budget, Optimizer, TrainerOptions
from routelab.training.store import sqlite_path
from routelab.training.stored import recorded
from routers.errors import UsageError, unknown
from routers.loading import load_plugin

RECORD = "record.json"
_PLACES = ("platform", "python", "versions", "git_revision", "git_diff", "data_digest")


def find_record(run: str, uri: str | None, results: Path = Path("results")) -> dict[str, Any]:
    """The record of a run; UsageError if there is none.

    run: what `run_folder` takes, or the id of a run in the MLflow store at `uri`.
    """
    folder = run_folder(run, results)
    if folder is not None:
        found = read_json(folder / RECORD)
        if found is None or not found.keys() >= {"arm", "seed", "data", "status"} or not found.get("config"):
            raise UsageError(f"run {run!r}: {str(folder / RECORD)!r} is damaged, or not the record of a run")
        return found
    if uri is None:
        raise UsageError(f"run {run!r} is no folder and no cell in {str(results / 'cells')!r}, and there is no store to ask")
    try:
        return recorded(uri, run, RECORD)
    except UsageError as error:
        raise UsageError(
            f"run {run!r} is neither a run's folder, such as results/NAME/ARM-sSEED, nor a cell, nor a run in MLflow: {error}"
        ) from error


def run_folder(run: str, results: Path = Path("results")) -> Path | None:
    """The folder of a run's record and weights, None if there is none.

    run: that folder or its record.json, a run of a comparison by its arm and seed (`results/language/switch-s0`), or the address
    of a cell (20 hexadecimal digits, in `results`/cells). UsageError if it names a comparison, or none of its runs.
    """
    path = Path(run)
    if path.name == RECORD and path.is_file():
        return path.parent
    for place in (path, results / "cells" / run):
        if (place / RECORD).is_file():
            return place
    whole = runs_of(path)
    if whole:
        raise UsageError(f"run {run!r} is a comparison; name one of its runs, such as {str(path / next(iter(whole)))!r}")
    parts = runs_of(path.parent)
    if parts and path.name not in parts:
        raise unknown(f"run of {str(path.parent)!r}", path.name, parts)
    return parts.get(path.name)


def runs_of(comparison: Path) -> dict[str, Path]:
    """The runs of a comparison's folder, as ARM-sSEED, and where they lie; empty if it is none."""
    cells = (read_json(comparison / "summary.json") or {}).get("cells")
    known = [cell for cell in cells if isinstance(cell, list) and len(cell) == 3] if isinstance(cells, list) else []
    return {f"{label}-s{seed}": cell_folder(comparison, str(key)) for label, seed, key in known}


def folder_of(run: str, record: Mapping[str, Any], uri: str | None, results: Path = Path("results")) -> Path:
    """Where a run left its weights: its own folder; for a run known by its id, that of its cell, or of a single run with the
    same cell, in `results` or beside the store."""
    known = run_folder(run, results)
    if known is not None:
        return known
    cell = str((record.get("provenance") or {}).get("cell"))
    store = sqlite_path(uri) if uri else None
    roots = [results, *([store.parent] if store is not None else [])]
    for root in roots:
        if (root / "cells" / cell / WEIGHTS).is_file():
            return root / "cells" / cell
        for place in sorted(root.glob(f"*/*-s{record['seed']}/{RECORD}")):
            if ((read_json(place) or {}).get("provenance") or {}).get("cell") == cell:
                return place.parent
    return roots[0] / "cells" / cell


def spec_of(record: Mapping[str, Any]) -> RunSpec:
    """The specification that a record was trained with. UsageError if it is none of this version's."""
    config = record["config"]
    try:
        return RunSpec(
            label=str(record["arm"]),
            arm=ArmSpec(**config["arm"]),
            seed=config["seed"],
            data=config["data"],
            budget=Budget(**config["budget"]),
            optimizer=Optimizer(**config["optimizer"]),
            trainer=TrainerOptions(**config["trainer"]),
            plugins=tuple(config["plugins"]),
            init=Recorded(**config["init"]) if config.get("init") else None,
        )
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"run {record.get('arm')}-s{record.get('seed')}: its record is damaged, or of another version of routelab "
            f"({type(error).__name__}: {error}); train it again"
        ) from error


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
    after = execute(spec, observer=_Watching(watch), data=data).record
    if after["status"] != "ok":
        return Replay(after, 0, ("status", "ok", after["error"]), changes(before, after))
    differences = (each for each in _numbers(before, after) if each[1] != each[2])
    return Replay(after, len(before["curve"]), next(differences, None), changes(before, after))


class _Watching(Observer):
    def __init__(self, watch: Callable[[float], None]) -> None:
        self.watch = watch

    def spent(self, share: float) -> None:
        self.watch(share)


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
