"""Settings of one arm by dotted name: which names the arm takes, and the arm with new values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from routelab.baselines.build import arm_class, router_of
from routelab.baselines.moe_arm import ARM_OPTIONS, LAYER_OPTIONS
from routelab.config.arm_grid import ArmChoice
from routelab.config.run_options import Optimizer
from routelab.config.schema import EXPERT_KEYS
from routelab.core.options import option_names
from routelab.routers.router_registry import ROUTERS

Settings = dict[str, Any]
"""Dotted names, as in a configuration, to values."""


def flatten_settings(tree: Mapping[str, Any], prefix: str = "") -> Settings:
    flat: Settings = {}
    for name, value in tree.items():
        flat |= flatten_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def in_full(choice: ArmChoice, key: str) -> str:
    """A dotted name with its section: options of an arm itself may be named without, as in `arms`."""
    return f"options.{key}" if key in arm_class(choice.spec.name).option_names() else key


def takes(choice: ArmChoice, key: str) -> bool:
    """Whether a dotted name in full means something to this arm."""
    section, _, rest = key.partition(".")
    kind, router = arm_class(choice.spec.name), router_of(choice.spec)
    if section == "optimizer":
        return not kind.fit_outside_loop and rest in {each.name for each in fields(Optimizer)}
    if section == "backbone":
        return not kind.fit_outside_loop and bool(rest)
    if section == "experts":
        return router is not None and rest in EXPERT_KEYS
    if section == "router":
        if router is None:
            return False
        own = option_names(ROUTERS.get(router))
        return own is None or rest.partition(".")[0] in {*own, *LAYER_OPTIONS, *ARM_OPTIONS}
    return section == "options" and rest in kind.option_names()


def apply(choice: ArmChoice, settings: Mapping[str, Any]) -> ArmChoice:
    """The arm with these settings."""
    spec, optimizer = choice.spec, choice.optimizer
    for key, value in settings.items():
        section, _, rest = key.partition(".")
        if section == "optimizer":
            optimizer = replace(optimizer, **{rest: value})
        elif section == "router" and rest.startswith("loss_weights."):
            weights = {**(spec.router.get("loss_weights") or {}), rest.partition(".")[2]: value}
            spec = spec.with_value("router.loss_weights", weights)
        else:
            spec = spec.with_value(key, value)
    return replace(choice, spec=spec, optimizer=optimizer, rates=(optimizer.lr,))
