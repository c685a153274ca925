"""Construction of arms by name, and their errors."""

from __future__ import annotations

from typing import Any

import torch

from routelab.backbones.backbone_registry import BACKBONES
from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.base import Arm, ArmSpec
from routelab.baselines.baseline_registry import BASELINES
from routelab.core.errors import PluginError, UsageError, first_line, unknown
from routelab.core.registry import BUILT_IN, Registry
from routelab.data.task import Task
from routelab.experts.expert_registry import KINDS
from routelab.routers.router_registry import ROUTERS


def arm_names() -> list[str]:
    """Every name that `arm=` takes: baselines, and routers (a backbone routed by it)."""
    return sorted({*BASELINES.names(), *ROUTERS.names()})


def arm_class(name: str) -> type[Arm]:
    """The class behind an arm's name; UsageError with the nearest match if there is none.

    For a plugin that cannot be used it is a class that says why when it is built, as the others of a comparison go on.
    """
    if name in BASELINES:
        try:
            return BASELINES.get(name)
        except PluginError as error:
            return _unusable(str(error))
    if name in ROUTERS:
        from routelab.baselines.moe_arm import Routed

        return Routed
    raise unknown("arm", name, arm_names())


def _unusable(reason: str) -> type[Arm]:
    def build(self: Arm, task: Task, seed: int, *, sizing: bool = False) -> None:
        raise PluginError(reason)

    return type("Unusable", (Arm,), {"build": build})


def router_of(spec: ArmSpec) -> str | None:
    """The router that reads the spec's router section, if any does."""
    return next((name for name in arm_class(spec.name).made_of(spec) if name in ROUTERS and name not in BASELINES), None)


def make_arm(spec: ArmSpec, task: Task, seed: int, *, sizing: bool = False) -> Arm:
    """Build an arm; a ValueError of its parts becomes a UsageError that names the arm.

    If the arm, or its router, is not built in, anything that it raises becomes a PluginError: options of built-in parts are
    wrong because of the caller, a plugin may be wrong by itself. So does what a backbone or expert kind of a plugin raises,
    but for a ValueError.
    """
    try:
        arm = arm_class(spec.name)(spec)
        if sizing:
            with torch.device("meta"):
                arm.build(task, seed, sizing=True)
        else:
            arm.build(task, seed)
    except UsageError:
        raise
    except Exception as error:
        plugins = plugins_in(spec)
        if plugins and (spec.name in plugins or not isinstance(error, ValueError)):
            raise PluginError.of(" with ".join(plugins.values()), error) from error
        if isinstance(error, ValueError):
            raise UsageError(f"arm {spec.name!r}: {error}") from error
        raise
    return arm


def plugins_in(spec: ArmSpec) -> dict[str, str]:
    """The parts of an arm that are not built in: their names, and their titles with their origins."""
    used: list[tuple[Registry[Any], Any]] = [
        *((BASELINES if name in BASELINES else ROUTERS, name) for name in arm_class(spec.name).made_of(spec)),
        (KINDS, spec.experts.get("kind")),
        (BACKBONES, spec.backbone.get("name")),
    ]
    return {name: table.title(name) for table, name in used if name in table and table.origin(name) != BUILT_IN}


def blame(spec: ArmSpec, error: Exception, when: str) -> str:
    """Return one line on an error that occurred `when` ("at step 3"), with the plugins of the arm."""
    said = f"{type(error).__name__} {when}{f': {first_line(error)}' if first_line(error) else ''}"
    return ": ".join([*filter(None, [" with ".join(plugins_in(spec).values())]), said])


def make_single(spec: ArmSpec, task: Task, seed: int, *, sizing: bool = False) -> SingleBackbone:
    """`make_arm` for what other arms are made of; ValueError unless that is one backbone, dense or routed."""
    if not issubclass(arm_class(spec.name), SingleBackbone):
        raise ValueError(f"base is {spec.name!r}; it must be dense or a router's name")
    made = make_arm(spec, task, seed, sizing=sizing)
    assert isinstance(made, SingleBackbone)
    return made
