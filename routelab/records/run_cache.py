"""Cells: one arm and seed of a comparison, addressed by everything that decides its result, and kept for ever."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import routelab
from routelab.backbones.base import BACKBONES
from routelab.baselines.base import BASELINES, ArmSpec
from routelab.baselines.build import arm_class
from routelab.baselines.run_reference import teacher_of
from routelab.config.run_spec import RunSpec, runs_on
from routelab.core.code_digest import CodeIndex, package_locator, read_module
from routelab.core.registry import Registry
from routelab.data.base import DATA
from routelab.data.unit_table import UnitTable
from routelab.experts.feed_forward import KINDS
from routelab.records.json_io import read_json
from routelab.records.unit_file import UNITS, read_units, units_digest
from routelab.routers.router_registry import ROUTERS

ENTRY_MODULE = "routelab.training.run"
"""Module whose imports every run executes."""


def cell_key(spec: RunSpec, digest: str) -> str:
    """The address of a run: its specification, the data's digest, and the code that it runs.

    Code means every module that the run imports, lazily or not: those behind `routelab.training.run`, and those behind the
    router, the baseline, the backbone, the expert kind and the data that its specification names. Comments and docstrings do
    not count. Editing or adding one router leaves the cells of the others valid.
    """
    plain = spec.plain()
    # Plugins are in the code already; where they lie decides nothing.
    del plain["plugins"]
    # A resumed run is the same run.
    del plain["trainer"]["checkpoint_seconds"]
    # A run on a GPU in bfloat16 is another one than on a CPU, though `auto` names both.
    plain["trainer"] |= runs_on(spec.trainer)
    # An option that names a file stands for what is in it.
    plain["init"] = None if spec.init is None else spec.init.address()
    router = {
        name: _hash(Path(str(value)).expanduser()) if _is_file(value) else value for name, value in spec.arm.router.items()
    }
    teacher = teacher_of(spec.arm)
    options = spec.arm.options if teacher is None else {**spec.arm.options, "teacher": teacher.address()}
    plain["arm"] = {**plain["arm"], "router": router, "options": options}
    content = json.dumps([plain, digest, *_code_of(spec)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def training_key(spec: RunSpec, digest: str) -> str:
    """The address of a run's training, which arms that are trained alike have in common; see `Arm.trained_as`."""
    return cell_key(replace(spec, arm=arm_class(spec.arm.name).trained_as(spec.arm)), digest)


def code_digest(specs: Iterable[RunSpec]) -> str:
    """The address of the code that these runs execute; runs of different addresses are not to be compared."""
    found = [_code_of(spec) for spec in specs]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]


def _code_of(spec: RunSpec) -> list[list[str]]:
    """Return pairs of a module and its digest, for every module that the run imports; files of plugins come last."""
    used: list[tuple[Registry[Any], str]] = [
        *(part for arm in (spec.arm, *arm_class(spec.arm.name).learns_from(spec.arm)) for part in _parts(arm)),
        (DATA, spec.data["name"]),
    ]
    parts = [(registry, name) for registry, name in used if name in registry]
    plugin_files = {path: None for registry, name in parts for path in registry.sources(name)}
    plugins = [read_module(path, path.stem) for path in plugin_files]
    modules = code_index().closure(
        [ENTRY_MODULE, *(registry.module(name) for registry, name in parts)],
        [pair for plugin in plugins for pair in plugin.imports],
    )
    return [
        *([name, digest] for name, digest in modules.items()),
        *([path.name, plugin.digest] for path, plugin in zip(plugin_files, plugins, strict=True)),
    ]


def _parts(arm: ArmSpec) -> list[tuple[Registry[Any], str]]:
    """What an arm is made of, by registry and name."""
    return [
        *((registry, name) for name in arm_class(arm.name).made_of(arm) for registry in (ROUTERS, BASELINES)),
        (KINDS, arm.experts.get("kind", "gelu")),
        (BACKBONES, arm.backbone.get("name", "")),
    ]


@functools.cache
def code_index() -> CodeIndex:
    """Return the modules of this installation, as they were at the first call in this process."""
    return CodeIndex(package_locator("routelab", Path(routelab.__file__).parent))


def _is_file(value: object) -> bool:
    return isinstance(value, str) and Path(value).suffix != "" and Path(value).expanduser().is_file()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cell_folder(output: Path, key: str) -> Path:
    """Where a cell lies: beside the comparisons, shared by them."""
    return output.parent / "cells" / key


def finished(output: Path, key: str) -> dict[str, Any] | None:
    """Return the record of a cell that has succeeded; None for others, which are trained again.

    A cell whose record names test units also counts as damaged if their file is missing, or if it is that of another run. A process
    that dies leaves such a file between writing the file and writing the record.

    Args:
        output: the folder of the comparison.
        key: the cell's address.
    """
    record = read_json(cell_folder(output, key) / "record.json")
    if record is None or record.get("status") != "ok" or not record.get("test"):
        return None
    digest = (record.get("provenance") or {}).get("units_sha256")
    if record.get("units") and (digest is None or units_digest(cell_folder(output, key) / UNITS) != digest):
        return None
    return record


def unit_table_of(output: Path, record: Mapping[str, Any]) -> UnitTable | None:
    """Read the test units of a comparison's run.

    Args:
        output: the folder of the comparison.
        record: the run's record, with its address.

    Returns:
        The table; None if the run has none, or if its file is missing or damaged.
    """
    key = (record.get("provenance") or {}).get("cell")
    return read_units(cell_folder(output, str(key)) / UNITS) if key and record.get("units") else None
