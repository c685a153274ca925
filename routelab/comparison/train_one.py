"""`train`: one arm, one seed, recorded on disk and in MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from routelab.comparison.execute import Job, opening
from routelab.comparison.grid import check_batch
from routelab.comparison.matching import match_arms
from routelab.config.arm_grid import ArmChoice, arm_choices
from routelab.config.resolve import Resolved, resolve
from routelab.config.schema import Config
from routelab.core.errors import UsageError
from routelab.core.process_group import inside
from routelab.data.base import load
from routelab.records.json_io import check_writable, write_json
from routelab.records.lineage import Origins
from routelab.records.run_cache import cell_key
from routelab.tracking.artifacts import store_at
from routelab.tracking.mlflow_tracker import Tracker
from routelab.training.checkpoint import discard
from routelab.training.observer import CallbackObserver
from routelab.training.run import Run, execute


def train(
    config: str | Path | Mapping[str, Any] | Sequence[str] | Resolved = (),
    *,
    watch: Callable[[float], None] = lambda share: None,
) -> Run:
    """Train `config.arm` with `config.seed`; its widths are matched to the reference as `compare` would.

    Leaves `record.json`, `weights.ckpt` and `units.parquet` in OUTPUT/ARM-sSEED. A run that fails is a record with status "failed"; one that
    was interrupted goes on from its last checkpoint when the same call is made again.
    """
    resolved = config if isinstance(config, Resolved) else resolve(config)
    settings = resolved.config
    data = load(**settings.data)
    origins = Origins.of(settings, data, store_at(settings.tracking.uri))
    choices = origins.choices([settings.arm], settings.seed)
    if len(choices) > 1:
        raise UsageError(f"train takes one arm; this grid has {len(choices)}: use compare")
    if len(choices[0].rates) > 1:
        raise UsageError(f"optimizer.lr={list(choices[0].rates)} must be one rate for train; compare chooses among several")
    check_batch(settings, data)
    matched = match_arms(with_reference(settings, choices), data.task, settings.match)[-1]
    if matched.error:
        raise UsageError(f"arm {matched.choice.label!r}: {matched.error}")
    folder = resolved.output / f"{matched.choice.label}-s{settings.seed}"
    check_writable(folder)
    # Of a group that torchrun started, one process tells what all of them did.
    tells = not inside() or os.environ.get("RANK") == "0"
    tracker = Tracker(settings.tracking.uri if tells else None, resolved.experiment)
    tracker.open()
    spec = origins.spec(matched.choice, settings.seed)
    job = Job(cell_key(spec, data.digest), spec, folder)
    name = f"{matched.choice.label}-s{settings.seed}"
    run_id = tracker.start_run(opening(job), None, name)
    observer = CallbackObserver(watch, lambda point: tracker.log_points(run_id, [point]))
    try:
        run = execute(spec, folder=folder, key=job.key, observer=observer, data=data)
    except BaseException:
        tracker.stop()
        raise
    run.record["provenance"]["cell"] = job.key
    if tells:
        write_json(folder / "record.json", run.record)
        discard(folder)
    tracker.end_run(run_id, run.record, name)
    run.record["problems"] = [*run.record["problems"], *tracker.problems]
    run.record["folder"] = str(folder)
    return run


def with_reference(settings: Config, choices: Sequence[ArmChoice]) -> list[ArmChoice]:
    """The arms, and before them the one that they are matched to, unless it is among them or matching is off.

    It goes without options that only the other arms' routers take.
    """
    reference = settings.match.reference
    if settings.match.on == "none" or any(reference in (choice.label, choice.spec.name) for choice in choices):
        return list(choices)
    return [*arm_choices(replace(settings, router={}), [reference]), *choices]
