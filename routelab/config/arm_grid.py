"""The rows of a comparison: names, options and grids from the configuration, expanded into one arm each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import arm_class, arm_names, router_of
from routelab.config.resolve import check_init, check_optimizer, flatten, rates_of
from routelab.config.run_options import Optimizer
from routelab.config.schema import EXPERT_KEYS, Config
from routelab.core.errors import PluginError, UsageError, unknown


@dataclass(frozen=True)
class ArmChoice:
    """One row of a comparison: its label, the arm's description, and the optimizer it is trained with.

    rates: the learning rates to choose from on validation, for arms that train in the loop; `optimizer.lr` is the first.
    own: dotted names of what the arm's own entry in `arms` says, which makes it this arm and no other.
    entry: the number of the item of `arms` that it comes from. varied: the options that this item varies, with this row's values.
    times: how many times the configuration's budget it has. init: the run that it begins from, of which it takes its weights or
    its FLOPs (`take`).
    """

    label: str
    spec: ArmSpec
    optimizer: Optimizer
    rates: tuple[float, ...] = ()
    own: tuple[str, ...] = ()
    entry: int = 0
    varied: tuple[tuple[str, Any], ...] = ()
    times: float = 1.0
    init: str | None = None
    take: str = "weights"

    def with_rate(self, rate: float) -> ArmChoice:
        """The same row with one learning rate."""
        return replace(self, optimizer=replace(self.optimizer, lr=rate), rates=(rate,))


def arm_choices(config: Config, arms: Sequence[Any]) -> list[ArmChoice]:
    """Expand `arms` (names, or mappings with options and grids) into one choice per row.

    A list is a grid over its values. `each`, a list of mappings, varies options together: one row for each mapping.
    """
    if not arms:
        raise UsageError("arms is empty; name at least one arm")
    choices = [replace(choice, entry=entry) for entry, item in enumerate(arms) for choice in _expand(config, item)]
    labels = [choice.label for choice in choices]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"two arms are labelled {label!r}; give one of them a label of its own")
    _check_router_options(config, choices)
    return choices


def _expand(config: Config, item: Any) -> Iterator[ArmChoice]:
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, Mapping) or "name" not in item:
        raise UsageError(f"arm {item!r} must be a name, or keys and values with a `name`")
    name = str(item["name"])
    if name not in arm_names():
        raise unknown("arm", name, arm_names())
    options = {key: value for key, value in flatten(item).items() if key not in ("name", "label", "each")}
    together = _together(name, item.get("each"), options)
    grid = [key for key, value in options.items() if isinstance(value, list) and key != "optimizer.lr"]
    for key in grid:
        if not options[key]:
            raise UsageError(f"arm {name!r}: {key}=[] names no value; a list is a grid, with a row for each of its values")
    for values in itertools.product(*(options[key] for key in grid), together):
        varied = {**dict(zip(grid, values[:-1], strict=True)), **values[-1]}
        chosen = {**options, **varied}
        label = str(item.get("label") or name)
        if item.get("label"):
            try:
                label = label.format(name=name, **{key.replace(".", "_"): value for key, value in chosen.items()})
            except (KeyError, IndexError, ValueError):
                raise UsageError(
                    f"label {item['label']!r} may use {{name}} and the arm's options: {', '.join(chosen) or 'it has none'}"
                ) from None
        elif varied:
            label = "-".join([name, *(f"{key}={value}" for key, value in varied.items())])
        yield replace(_choice(config, name, label, chosen), varied=tuple(varied.items()))


def _together(name: str, each: Any, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options that vary together, one mapping for each row; a single empty one if there are none."""
    if each is None:
        return [{}]
    rows = [flatten(row) for row in each if isinstance(row, Mapping)] if isinstance(each, list) else []
    if not rows or len(rows) < len(each) or any(row.keys() != rows[0].keys() for row in rows):
        raise UsageError(f"arm {name!r}: each={each!r} must be a list of mappings, all with the same options")
    for key in rows[0]:
        if key in options or key in ("name", "label", "each"):
            raise UsageError(f"arm {name!r}: each varies {key!r}, which is given beside it too")
    return rows


def _choice(config: Config, name: str, label: str, options: Mapping[str, Any]) -> ArmChoice:
    backbone = {"hidden": None, "moe_every": None, **config.backbone}
    own = arm_class(name).option_names()
    # First, for they say which other arms this one is made of.
    mine = {key: value for key, value in options.items() if key in own}
    spec = ArmSpec(name, backbone, dict(config.experts), dict(config.router), mine)
    optimizer = asdict(config.optimizer)
    init, times = dict(config.init), 1.0
    said = [f"options.{key}" for key in mine]
    for given, value in options.items():
        if given in mine:
            continue
        key = f"router.{given}" if given.startswith("loss_weights.") else given
        section, _, rest = key.partition(".")
        if section in ("backbone", "experts", "router") and rest:
            if section == "router" and rest.startswith("loss_weights."):
                weights = {**(spec.router.get("loss_weights") or {}), rest.partition(".")[2]: value}
                spec = spec.with_value("router.loss_weights", weights)
            elif section == "experts" and rest not in EXPERT_KEYS:
                raise unknown(f"option of arm {label!r}", key, [f"experts.{name}" for name in EXPERT_KEYS])
            else:
                spec = spec.with_value(key, value)
        elif section == "optimizer":
            if rest not in optimizer:
                raise unknown(f"option of arm {label!r}", key, [f"optimizer.{name}" for name in optimizer])
            optimizer[rest] = value
        elif section == "init":
            if rest not in init:
                raise unknown(f"option of arm {label!r}", key, [f"init.{name}" for name in init])
            init[rest] = value
            continue
        elif section == "budget":
            if rest != "times":
                raise unknown(f"option of arm {label!r}", key, ["budget.times"])
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise UsageError(f"arm {label!r}: budget.times={value!r} must be a number above 0")
            times = float(value)
            continue
        elif router_of(spec) is not None:
            key = f"router.{key}"
            spec = spec.with_value(key, value)
        elif own:
            raise unknown(f"option of arm {label!r}", key, own)
        else:
            raise UsageError(
                f"arm {label!r} takes no option {key!r}; use backbone.*, experts.*, optimizer.*, init.* or budget.times"
            )
        said.append(key)
    rates = rates_of(optimizer["lr"], "optimizer.lr")
    if arm_class(name).fit_outside_loop:
        rates = rates[:1]  # It has no learning rate to choose.
    check_init(init["from"], init["take"], f"arm {label!r}: init")
    first = Optimizer(**{**optimizer, "lr": rates[0]})
    check_optimizer(first)
    return ArmChoice(label, spec, first, rates, tuple(said), times=times, init=init["from"], take=init["take"])


def _check_router_options(config: Config, choices: Sequence[ArmChoice]) -> None:
    """An option given for all routers goes to those that take it; one that none takes is an error."""
    from routelab.baselines.moe_arm import ARM_OPTIONS, LAYER_OPTIONS
    from routelab.core.options import option_names
    from routelab.routers.router_registry import ROUTERS

    routed = [(choice, router) for choice in choices if (router := router_of(choice.spec)) is not None]
    for key in config.router:
        takers = []
        for choice, router in routed:
            try:
                own = option_names(ROUTERS.get(router))
            except PluginError:
                own = None  # It is reported when its arm is built.
            if own is None or key in own or key in LAYER_OPTIONS or key in ARM_OPTIONS:
                takers.append(choice)
            else:
                del choice.spec.router[key]  # type: ignore[attr-defined]
        if not takers:
            allowed = {*LAYER_OPTIONS, *ARM_OPTIONS}
            for _, router in routed:  # All of them can be loaded, or they would be takers.
                allowed.update(option_names(ROUTERS.get(router)) or [])
            raise unknown("key", f"router.{key}", [f"router.{name}" for name in allowed])
