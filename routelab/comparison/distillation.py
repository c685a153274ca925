"""From a trained run to the comparison that asks whether a small model learns more from it than from the data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import yaml

from routelab.baselines.backbone_arm import ARM_OPTIONS, SingleBackbone
from routelab.baselines.build import arm_class, arm_names
from routelab.comparison.grid import training_flops
from routelab.comparison.matching import match_arms
from routelab.config.arm_grid import ArmChoice, arm_choices
from routelab.config.resolve import Resolved, resolve, seed_list
from routelab.config.run_options import Budget
from routelab.config.run_spec import RunSpec
from routelab.config.schema import Config, Match
from routelab.core.errors import UsageError, unknown
from routelab.core.plugins import load_plugin
from routelab.data.base import load
from routelab.records.lineage import SEED, Origins
from routelab.records.run_lookup import find_record, spec_of
from routelab.tracking.artifacts import store_at

ALONE, DISTILLED, EQUAL_STEPS = "data-alone", "distilled", "data-alone-equal-steps"

_OWN = {"into": "dense", "temperature": 2.0, "weight": 0.5}
"""Words of the command that are no keys of a configuration."""

_SET_HERE = ("arm", "arms", "match.on", "match.reference", "init", "dense_ladder", "budget_ladder", "dense_budgets", "isoflop")


def distillation(run: str, words: Sequence[str], plugins: Sequence[str] = ()) -> Resolved:
    """The comparison, as a configuration: three arms of one size, on the run's data, with its optimizer and trainer.

    `data-alone` and `distilled` spend the same training FLOPs, the teacher's forward passes among them; `data-alone-equal-steps`
    takes as many steps as `distilled` does. All have as many active parameters as the run's arm has, by their feed-forward's
    width, unless a width is given. A budget in steps or epochs is the distilled student's. words: `into`, `temperature`,
    `weight` (lists of the latter two are grids), and `key=value` of a configuration.
    """
    own, rest = _split(words)
    asked = resolve((), rest, plugins)
    first = run.replace(SEED, str(seed_list(asked.config)[0]))
    record = find_record(first, store_at(asked.config.tracking.uri), asked.output.parent)
    spec = spec_of(record)
    for plugin in spec.plugins:
        load_plugin(plugin)
    into = str(own["into"])
    if into not in arm_names():
        raise unknown("into", into, arm_names())
    if not issubclass(arm_class(into), SingleBackbone):
        raise UsageError(f"into={into!r} must be dense or a router's name: a student is one backbone")
    resolved = resolve(_base(spec, into), rest, plugins)
    config = resolved.config
    if config.data != spec.data:
        raise UsageError(f"data={config.data!r} must be the run's, {spec.data!r}: a student learns on its teacher's data")
    data = load(**config.data)
    width = _width(resolved, spec, into, data.task)
    routed = {f"router.{key}": value for key, value in spec.arm.router.items()} if into == spec.arm.name else {}
    student = {**width, **routed}
    grids = "".join(f"-{key}{{{key}}}" for key in ("temperature", "weight") if isinstance(own[key], list))
    arms: list[dict[str, Any]] = [
        {"name": into, "label": ALONE, **student},
        {
            "name": "distilled", "label": f"{DISTILLED}{grids}", "base": into, "teacher": run,
            "temperature": own["temperature"], "weight": own["weight"], **student,
        },
    ]  # fmt: skip
    choices = Origins.of(config, data, store_at(config.tracking.uri)).choices(arms, seed_list(config)[0])
    alone, taught, *_ = match_arms(choices, data.task, config.match)
    costs = [each.train_flops_per_example for each in (alone, taught)]
    if costs[0] is None or costs[1] is None:
        raise UsageError(f"run {run!r}: what its forward passes cost is not known, so nothing can be compared at equal FLOPs")
    arms.append({"name": into, "label": EQUAL_STEPS, "budget.times": costs[0] / costs[1], **student})
    flops = training_flops(config, taught, config.budget, data)
    if flops is None:
        raise UsageError(f"budget.seconds={config.budget.seconds:g} ends runs by the clock; distil compares at equal FLOPs")
    # What papers report: as many steps, the teacher's passes forgotten.
    pairs = [[choice.label, EQUAL_STEPS] for choice in choices if choice.spec.name == "distilled"]
    statistics = replace(config.statistics, pairs=config.statistics.pairs or pairs)
    config = replace(config, arms=arms, budget=Budget(flops=flops), statistics=statistics)
    name = f"distil-{record['arm']}" + ("" if SEED in run else f"-s{record['seed']}")
    made = f"distil {run}"
    return replace(resolved, config=config, name=name, sources={**resolved.sources, "arms": made, "budget": made})


def _split(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The command's own words, and those for the configuration."""
    own, rest = dict(_OWN), []
    for word in words:
        key, _, value = word.partition("=")
        if key in own:
            own[key] = yaml.safe_load(value)
        elif any(key == name or key.startswith(f"{name}.") for name in _SET_HERE):
            raise UsageError(f"{key} is set by distil itself; give {', '.join(own)}, seeds, budget.*, or other keys")
        elif key.partition(".")[0] not in (known := [each.name for each in fields(Config)]):
            raise unknown("key", key, [*own, *known])
        else:
            rest.append(word)
    return own, rest


def _base(spec: RunSpec, into: str) -> dict[str, Any]:
    """The run's settings, without the widths that made it what it is."""
    widths = {"backbone": ARM_OPTIONS[1:], "experts": ("hidden",)}
    backbone, experts = (
        {key: value for key, value in getattr(spec.arm, section).items() if key not in left_out}
        for section, left_out in widths.items()
    )
    if into == spec.arm.name:
        backbone["moe_every"] = spec.arm.backbone.get("moe_every")
    return {
        "data": spec.data, "backbone": backbone, "experts": experts, "plugins": list(spec.plugins),
        "budget": {key: value for key, value in asdict(spec.budget).items() if value is not None},
        "optimizer": asdict(spec.optimizer), "trainer": asdict(spec.trainer),
        "match": {"on": "none", "reference": ALONE},
    }  # fmt: skip


def _width(resolved: Resolved, teacher: RunSpec, into: str, task: Any) -> Mapping[str, int]:
    """The student's feed-forward width that gives it the teacher's active parameters; {} if one was asked for, or there is none
    to choose."""
    config, knob = resolved.config, arm_class(into).knobs[-1]
    (student,) = arm_choices(config, [{"name": into, "label": "the student"}])
    if student.spec.get(knob) is not None:
        return {}
    whole = ArmChoice("the teacher", teacher.arm, teacher.optimizer)
    match = Match("active_params", config.match.tolerance, whole.label)
    matched = match_arms([whole, student], task, match)[-1]
    if matched.error:
        raise UsageError(f"into={into!r}: {matched.error}")
    return {knob: matched.choice.spec.get(knob)}
