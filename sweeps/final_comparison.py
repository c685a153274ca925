"""The end of a sweep: every arm with its best settings, trained on fresh seeds and read once on test, through `compare`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from routelab.baselines.run_reference import teacher_of
from routelab.comparison.compare import Comparison, carry_out
from routelab.comparison.prepared_comparison import Watch, plan
from routelab.config.arm_grid import ArmChoice
from routelab.config.resolve import Resolved
from routelab.config.schema import Config
from routelab.sweeps.arm_settings import apply
from routelab.sweeps.studies import Studies
from routelab.sweeps.study_status import best_trials, settings_of
from routelab.sweeps.sweep import Sweep, SweepArm
from routelab.sweeps.tuning_cost import tuning


def item(choice: ArmChoice) -> dict[str, Any]:
    """A row of a comparison as an entry of `arms` that says everything about it by itself."""
    spec, optimizer = choice.spec, asdict(choice.optimizer)
    found: dict[str, Any] = {f"optimizer.{key}": value for key, value in optimizer.items()}
    for section in ("backbone", "experts", "router"):
        found |= {f"{section}.{key}": value for key, value in getattr(spec, section).items() if value is not None}
    teacher = teacher_of(spec)
    found |= {**spec.options, "init.from": choice.init, **({"teacher": teacher.run} if teacher else {})}
    weights = found.pop("router.loss_weights", None) or {}
    found |= {f"router.loss_weights.{name}": value for name, value in weights.items()}
    # In an entry of `arms` a list is a grid; a list as a value is a grid of one.
    found = {key: [value] if isinstance(value, list) else value for key, value in found.items()}
    return {"name": spec.name, "label": choice.label.replace("{", "{{").replace("}", "}}"), **found}


def best_choices(sweep: Sweep, studies: Studies) -> list[ArmChoice]:
    """Every arm of the sweep in its configured order, with the settings of its best trial; arms with nothing to tune as they
    are, arms without a complete trial not at all."""
    tuned: dict[str, SweepArm] = {arm.label: arm for arm in sweep.arms}
    found = []
    for choice in sweep.choices:
        if choice.label not in tuned:
            found.append(choice)
            continue
        study = next(arm for arm in studies.arms if arm.label == choice.label)
        best = best_trials(study.trials())
        if best:
            found.append(apply(choice, settings_of(best[0])))
    return found


def final_config(sweep: Sweep, studies: Studies) -> Config:
    """The comparison of the best settings, as a configuration of its own."""
    config = sweep.config
    arms = [item(choice) for choice in best_choices(sweep, studies)]
    experts = dict.fromkeys(config.experts) | {
        "kind": config.experts.get("kind", "gelu"),
        "count": config.experts.get("count", 8),
    }
    experts["bias"] = bool(config.experts.get("bias", False))
    return replace(
        config, arms=arms, seeds=sweep.fresh_seeds, router={}, experts=experts, output=str(sweep.output),
        optimizer=replace(config.optimizer, lr=sweep.choices[0].optimizer.lr),
    )  # fmt: skip


def compare_best(sweep: Sweep, studies: Studies, watch: Watch = lambda done, total, share: None) -> Comparison:
    """Train the best settings on fresh seeds, and compare them on test."""
    resolved = Resolved(final_config(sweep, studies), sweep.name, sweep.resolved.sources)
    return carry_out(plan(resolved), watch, {"tuning": tuning(studies)})
