"""One trial: its runs trained one after another from wherever they are, reported at rungs, pruned, and told."""

from __future__ import annotations

import contextlib
import gc
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from routelab.baselines.build import blame
from routelab.config.run_spec import RunSpec
from routelab.core.errors import StorageError, UsageError
from routelab.core.number_format import finite
from routelab.core.pareto import falls_behind
from routelab.records.json_io import read_json, write_json
from routelab.records.run_cache import cell_folder, cell_key
from routelab.sweeps.arm_settings import Settings
from routelab.sweeps.samplers import rung
from routelab.sweeps.storage import patiently
from routelab.sweeps.study_status import ArmStudy
from routelab.sweeps.sweep import Sweep, SweepArm
from routelab.training.checkpoint import discard
from routelab.training.lightning_module import StoppedError
from routelab.training.observer import CallbackObserver
from routelab.training.run import execute

POINTS = "points.jsonl"
"""The curve of a run that is going on, a line for each point, for whoever shows it."""


@dataclass
class Outcome:
    """How a trial ended. values: of the objectives, if it is complete. spent: FLOPs, seconds and steps of all its runs."""

    state: TrialState
    values: list[float] | None = None
    error: str | None = None
    spent: dict[str, float] = field(default_factory=dict)


def asking(trial: optuna.Trial) -> Callable[[str, BaseDistribution], Any]:
    """The way in which a search space asks an Optuna trial."""

    def ask(key: str, each: BaseDistribution) -> Any:
        if isinstance(each, CategoricalDistribution):
            return trial.suggest_categorical(key, each.choices)
        if isinstance(each, IntDistribution):
            return trial.suggest_int(key, each.low, each.high, step=each.step, log=each.log)
        assert isinstance(each, FloatDistribution)
        return trial.suggest_float(key, each.low, each.high, step=each.step, log=each.log)

    return ask


def run_trial(sweep: Sweep, arm: SweepArm, study: ArmStudy, trial: optuna.Trial, settings: Settings) -> Outcome:
    """Train what is left of a trial."""
    halvings = int(trial.user_attrs.get("halvings", 0))
    while True:
        try:
            outcome, too_large = _attempt(sweep, arm, study, trial, settings, halvings)
        except StorageError:
            raise
        except UsageError as error:
            return Outcome(TrialState.FAIL, error=str(error))
        if not too_large:
            return outcome
        if sweep.config.trainer.batch_size % (2 << halvings):
            return outcome
        halvings += 1
        # For whoever takes this trial up after us, and for the eye.
        patiently(partial(trial.set_user_attr, "halvings", halvings))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _attempt(
    sweep: Sweep, arm: SweepArm, study: ArmStudy, trial: optuna.Trial, settings: Settings, halvings: int
) -> tuple[Outcome, bool]:
    specs = sweep.specs(arm, settings, halvings)
    keys = [cell_key(spec, sweep.data.digest) for spec in specs]
    folders = [cell_folder(sweep.output, key) for key in keys]
    patiently(partial(trial.set_user_attr, "folders", [str(folder) for folder in folders]))
    spent = {"flops": 0.0, "seconds": 0.0, "steps": 0.0}
    losses = []
    for number, (spec, key, folder) in enumerate(zip(specs, keys, folders, strict=True)):
        # The first seed is the one whose rungs are compared.
        pruning = _Pruning(sweep, arm, study, trial) if number == 0 and sweep.pruner.name != "none" else None
        record = trained(spec, key, folder, sweep, pruning)
        for name, value in (("flops", "flops_model"), ("seconds", "seconds"), ("steps", "steps")):
            spent[name] += finite(record.get(value)) or 0.0
        if record["status"] == "stopped":
            return Outcome(TrialState.PRUNED, error=record["error"], spent=spent), False
        if record["status"] != "ok":
            return Outcome(TrialState.FAIL, error=record["error"], spent=spent), bool(record.get("out_of_memory"))
        losses.append(float(record["validation"]["loss"]))
    mean = sum(losses) / len(losses)
    found = {"loss": mean, "flops": spent["flops"] / len(specs), "seconds": spent["seconds"] / len(specs)}
    values = [found[name] for name in sweep.objectives]
    if not all(map(math.isfinite, values)):
        return Outcome(TrialState.FAIL, error=f"an objective is not finite: {found}", spent=spent), False
    return Outcome(TrialState.COMPLETE, values, spent=spent), False


def trained(spec: RunSpec, key: str, folder: Path, sweep: Sweep, pruning: _Pruning | None) -> dict[str, Any]:
    """The record of a run: read if it is there, or trained, from its checkpoint if there is one. The test split stays unread."""
    found = read_json(folder / "record.json")
    if found is not None and found.get("status") == "ok" and found.get("validation"):
        if pruning is not None:
            pruning.replay(found["curve"])
        return found
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(folder / POINTS, "w", encoding="utf-8") as file:

            def write_and_prune(point: Mapping[str, float]) -> None:
                with contextlib.suppress(OSError):
                    file.write(json.dumps(dict(point)) + "\n")
                    file.flush()
                if pruning is not None:
                    pruning.look(point)

            observer = CallbackObserver(point=write_and_prune)
            record = execute(spec, folder=folder, key=key, observer=observer, data=sweep.data, test=False).record
    except StoppedError as error:
        # A run in processes of its own ends with the observer's error, and leaves no record.
        assert pruning is not None
        record = {"status": "stopped", "error": str(error), **_opening(spec), **pruning.last}
    except UsageError:
        raise
    except Exception as error:
        record = {"status": "failed", "error": blame(spec.arm, error, "before the first step"), **_opening(spec)}
    record["provenance"] = {**record.get("provenance", {}), "cell": key}
    write_json(folder / "record.json", record)
    (folder / POINTS).unlink(missing_ok=True)
    discard(folder)
    return record


def _opening(spec: RunSpec) -> dict[str, Any]:
    return {
        "arm": spec.label,
        "seed": spec.seed,
        "data": spec.data.get("name"),
        "config": spec.plain(),
        "test": {},
        "curve": [],
    }


class _Pruning:
    """Reports the loss at every rung that a trial passes, and ends it where it falls behind."""

    def __init__(self, sweep: Sweep, arm: SweepArm, study: ArmStudy, trial: optuna.Trial) -> None:
        self._sweep, self._study, self._trial = sweep, study, trial
        self._whole, self._checks = sweep.whole(arm), sweep.config.trainer.checks
        frozen = patiently(lambda: study.study._storage.get_trial(trial._trial_id))
        # A trial that is taken up again tells its points again: what is known is not asked about twice.
        self._rungs: dict[str, list[float]] = dict(frozen.user_attrs.get("rungs", {}))
        self._known = {*map(int, self._rungs), *frozen.intermediate_values}
        self.last: dict[str, float] = {}

    def look(self, point: Mapping[str, float]) -> None:
        self.last = {"flops_model": point["flops"], "seconds": point["seconds"], "steps": point["step"]}
        here = rung(point["flops"], self._whole, self._checks)
        if here < 1 or here in self._known or not self._sweep.pruner.asks(here) or not math.isfinite(point["val/loss"]):
            return
        self._known.add(here)
        asked = self._several if len(self._sweep.objectives) > 1 else self._single
        # A database that restarts is no reason for a trial to fail.
        behind = patiently(lambda: asked(here, point))
        # At its end a trial is complete, whatever the others did.
        if behind and here < self._checks:
            raise StoppedError(f"pruned at rung {here} of {self._checks}, after {point['flops']:.3g} FLOPs")

    def replay(self, curve: Sequence[Mapping[str, float]]) -> None:
        """Report the rungs of a run that is trained already, which there is no use in ending."""
        for point in curve:
            with contextlib.suppress(StoppedError):
                self.look(point)

    def _single(self, here: int, point: Mapping[str, float]) -> bool:
        self._trial.report(point["val/loss"], here)
        return self._trial.should_prune()

    def _several(self, here: int, point: Mapping[str, float]) -> bool:
        """Optuna refuses to prune for several objectives; this compares with what the other trials had at the same FLOPs."""
        mine = [float(point[{"loss": "val/loss"}.get(name, name)]) for name in self._sweep.objectives]
        if "flops" in self._sweep.objectives:
            # At a rung FLOPs are equal: what differs is what a trial will have cost at its end.
            mine[self._sweep.objectives.index("flops")] = point["flops"] / max(point["step"], 1)
        self._rungs[str(here)] = mine
        self._trial.set_user_attr("rungs", self._rungs)
        rule = self._sweep.pruner.against_front(here)
        if rule is None:
            return False
        peers = [each for trial in self._study.trials() if (each := self._at(trial, here)) is not None]
        return falls_behind(mine, peers, *rule)

    def _at(self, trial: FrozenTrial, here: int) -> list[float] | None:
        if trial.number == self._trial.number or trial.state is TrialState.FAIL:
            return None
        found: list[float] | None = trial.user_attrs.get("rungs", {}).get(str(here))
        return found
