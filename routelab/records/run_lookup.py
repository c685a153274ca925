"""Lookup of recorded runs by folder, cache address, or id in a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from routelab.baselines.base import ArmSpec
from routelab.baselines.run_reference import Recorded
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import WEIGHTS, RunSpec
from routelab.core.errors import UsageError, unknown
from routelab.records.json_io import read_json
from routelab.records.run_cache import cell_folder

RECORD = "record.json"


class RunStore(Protocol):
    """Store that keeps the records of runs under ids of its own, such as MLflow."""

    def read_json(self, run_id: str, artifact: str) -> dict[str, Any]:
        """Return a JSON artifact of a run.

        Args:
            run_id: id of the run in the store.
            artifact: path of the artifact.

        Raises:
            UsageError: if the store, the run or the artifact does not exist.
        """
        ...

    @property
    def folder(self) -> Path | None:
        """Folder of the store on this machine; None if the store is on another machine."""
        ...


def find_record(run: str, store: RunStore | None, results: Path = Path("results")) -> dict[str, Any]:
    """The record of a run; UsageError if there is none.

    run: what `run_folder` takes, or the id of a run in `store`.
    """
    folder = run_folder(run, results)
    if folder is not None:
        found = read_json(folder / RECORD)
        if found is None or not found.keys() >= {"arm", "seed", "data", "status"} or not found.get("config"):
            raise UsageError(f"run {run!r}: {str(folder / RECORD)!r} is damaged, or not the record of a run")
        return found
    if store is None:
        raise UsageError(f"run {run!r} is no folder and no cell in {str(results / 'cells')!r}, and there is no store to ask")
    try:
        return store.read_json(run, RECORD)
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


def folder_of(run: str, record: Mapping[str, Any], store: RunStore | None, results: Path = Path("results")) -> Path:
    """Where a run left its weights: its own folder; for a run known by its id, that of its cell, or of a single run with the
    same cell, in `results` or beside the store."""
    known = run_folder(run, results)
    if known is not None:
        return known
    cell = str((record.get("provenance") or {}).get("cell"))
    store_folder = None if store is None else store.folder
    roots = [results, *([] if store_folder is None else [store_folder])]
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
