"""Cells: one arm and seed of a comparison, addressed by everything that decides its result, and kept for ever."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from routelab.backbones.base import BACKBONES
from routelab.baselines.base import BASELINES, ArmSpec
from routelab.baselines.build import arm_class
from routelab.baselines.run_reference import teacher_of
from routelab.config.run_spec import RunSpec, runs_on
from routelab.core.registry import Registry
from routelab.data.base import DATA
from routelab.experts.feed_forward import KINDS
from routelab.records.json_io import read_json
from routelab.routers.router_registry import ROUTERS

REGISTRIES: tuple[Registry[Any], ...] = (ROUTERS, KINDS, BACKBONES, BASELINES, DATA)
_CODE = ("routers", "experts", "baselines", "routelab/backbones", "routelab/data", "routelab/training")
_NO_EFFECT = (
    "tracking.py", "tracked.py", "store.py", "record.py", "heatmap.py", "footprint.py", "config.py", "settings.py", "arms.py",
    "registry.py", "lazy.py", "loading.py", "options.py", "stored.py", "yardsticks.py", "offload.py",
)  # fmt: skip


def cell_key(spec: RunSpec, digest: str) -> str:
    """The address of a run: its specification, the data's digest, and the code that it runs.

    Code means the training path without the files of registered families, plus the families this run uses: editing or
    adding one router leaves the cells of the others valid.
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


def _code_of(spec: RunSpec) -> tuple[str, list[str]]:
    """The training path, and the families that this run uses."""
    used: list[tuple[Registry[Any], str]] = [
        *(part for arm in (spec.arm, *arm_class(spec.arm.name).learns_from(spec.arm)) for part in _parts(arm)),
        (DATA, spec.data["name"]),
    ]
    families = [path for registry, name in used if name in registry for path in registry.sources(name)]
    return _core(), [_hash(path) for path in families]


def _parts(arm: ArmSpec) -> list[tuple[Registry[Any], str]]:
    """What an arm is made of, by registry and name."""
    return [
        *((registry, name) for name in arm_class(arm.name).made_of(arm) for registry in (ROUTERS, BASELINES)),
        (KINDS, arm.experts.get("kind", "gelu")),
        (BACKBONES, arm.backbone.get("name", "")),
    ]


@functools.cache
def _core() -> str:
    root = Path(inspect.getfile(RunSpec)).resolve().parents[2]
    families = set[Path]().union(*(registry.builtin_sources() for registry in REGISTRIES))
    # Contracts that define a registered object themselves (expert kinds) are core as well.
    files = [path for folder in _CODE for path in sorted((root / folder).rglob("*.py"))]
    core = [path for path in files if path.name not in _NO_EFFECT and (path not in families or path.parent.name == "experts")]
    return hashlib.sha256("".join(_hash(path) for path in core).encode()).hexdigest()


def _is_file(value: object) -> bool:
    return isinstance(value, str) and Path(value).suffix != "" and Path(value).expanduser().is_file()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cell_folder(output: Path, key: str) -> Path:
    """Where a cell lies: beside the comparisons, shared by them."""
    return output.parent / "cells" / key


def finished(output: Path, key: str) -> dict[str, Any] | None:
    """The record of a cell that has succeeded, or None (failed cells are tried again, damaged ones trained again)."""
    record = read_json(cell_folder(output, key) / "record.json")
    if record is None or record.get("status") != "ok" or not record.get("test"):
        return None
    return record
