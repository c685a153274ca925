"""`train`: one arm, one seed, recorded on disk and in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from routelab.comparison.compare import check_writable
from routelab.data.contract import load
from routelab.training.config import ArmChoice, Config, Resolved, arm_choices, resolve
from routelab.training.loop import Run, RunSpec, execute
from routelab.training.matching import match_arms
from routelab.training.record import write_json
from routelab.training.tracking import Tracker
from routers.errors import UsageError


def train(
    config: str | Path | Mapping[str, Any] | Sequence[str] | Resolved = (),
    *,
    watch: Callable[[float], None] = lambda share: None,
) -> Run:
    """Train `config.arm` with `config.seed`; its widths are matched to the reference as `compare` would.

    Leaves `record.json` and `weights.ckpt` in OUTPUT/ARM-sSEED. A run that fails is a record with status "failed".
    """
    resolved = config if isinstance(config, Resolved) else resolve(config)
    settings = resolved.config
    data = load(**settings.data)
    choices = arm_choices(settings, [settings.arm])
    if len(choices) > 1:
        raise UsageError(f"train takes one arm; this grid has {len(choices)}: use compare")
    reference = settings.match.reference
    against = [] if reference in (choices[0].label, choices[0].spec.name) else arm_choices_of(settings, reference)
    matched = match_arms([*against, *choices], data.task, settings.match)[-1]
    if matched.error:
        raise UsageError(f"arm {matched.choice.label!r}: {matched.error}")
    folder = resolved.output / f"{matched.choice.label}-s{settings.seed}"
    check_writable(folder)
    tracker = Tracker(settings.tracking.uri, resolved.experiment)
    tracker.open()
    run = execute(RunSpec.of(settings, matched.choice, settings.seed), folder=folder, progress=watch, data=data)
    write_json(folder / "record.json", run.record)
    tracker.log_record(run.record, None, f"{matched.choice.label}-s{settings.seed}")
    run.record["problems"] = list(tracker.problems)
    run.record["folder"] = str(folder)
    return run


def arm_choices_of(settings: Config, reference: str) -> list[ArmChoice]:
    """The reference arm, without options that only the trained arm's router takes; none if matching is off."""
    if settings.match.on == "none":
        return []
    return arm_choices(replace(settings, router={}), [reference])
