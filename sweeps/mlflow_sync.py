"""A sweep in MLflow: study -> arm -> trial -> seed. What lies in the storage and on disk is the truth, and is copied.

Workers write nothing to MLflow: one process on the results folder does, and looks again and again for what is missing there.
So a tracking server that is down costs nothing but time, a process that is killed leaves nothing half said, and what was not
sent is sent by whoever looks next.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from routelab.config.resolve import flatten
from routelab.core.errors import UsageError
from routelab.core.number_format import finite, format_setting
from routelab.records.json_io import plain, read_json
from routelab.records.provenance import provenance
from routelab.sweeps.distributions import in_words
from routelab.sweeps.studies import Studies
from routelab.sweeps.study_export import as_csv, importance
from routelab.sweeps.study_plots import pictures
from routelab.sweeps.study_status import ArmStudy, best_trials, plain_best, settings_of
from routelab.sweeps.sweep import Sweep, SweepArm
from routelab.sweeps.trial import POINTS
from routelab.sweeps.tuning_cost import tuning
from routelab.tracking.mlflow_tracker import Tracker
from routelab.tracking.uri import is_server

_SWEEP, _TRIAL = "routelab.sweep", "routelab.trial"
_LOOK_SECONDS, _RETRY_SECONDS, _LIVE_SECONDS = 2.0, 15.0, 10.0
"""Between two looks; between two attempts on a store that failed; how old a trial is before it is shown while it runs."""

_ENDS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
_SHORT = {
    "experts.count": "e",
    "experts.hidden": "h",
    "router.capacity_factor": "cf",
    "router.top_k": "k",
    "optimizer.lr": "lr",
    "optimizer.weight_decay": "wd",
}


def trial_name(label: str, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """`top2-e8-cf1.25`: the arm, and what differs from its usual settings."""
    parts = [label]
    for key, value in settings.items():
        if usual.get(key) != value:
            text = format_setting(value, digits=3)
            parts.append(f"{_SHORT.get(key) or key.rpartition('.')[2].replace('_', '')}{text}")
    return "-".join(parts)


class Mirror:
    """Copies the studies of a sweep into MLflow. `problem` is why that does not work at present, or None."""

    def __init__(self, sweep: Sweep, studies: Studies) -> None:
        self._sweep, self._studies = sweep, studies
        self._tracker = Tracker(sweep.config.tracking.uri, sweep.config.tracking.experiment or sweep.name)
        self._lock = FileLock(sweep.output / "tracking.lock")
        self._next = 0.0
        self._open = False
        self._study = ""
        self._arms: dict[str, str] = {}
        self._done: set[str] = set()
        self._runs: dict[str, str] = {}
        self._begun: set[str] = set()
        self._seeds: dict[str, str] = {}
        self.problem: str | None = None

    def begin(self) -> None:
        """Open the store. UsageError if it cannot be, unless it is a server, which may come back."""
        self.look(now=True)
        if self.problem is not None and not is_server(self._tracker.uri):
            raise UsageError(self.problem)

    def look(self, *, now: bool = False) -> bool:
        """Copy what is new; whether MLflow then had everything. Never raises: a store that fails is tried again later."""
        if not self._tracker.uri:
            return True
        if not now and time.monotonic() < self._next:
            return False
        if not self._lock.is_locked:
            try:
                self._lock.acquire(timeout=0)
            except (Timeout, OSError):
                # Another process on this folder does it.
                self._next = time.monotonic() + _RETRY_SECONDS
                return True
        try:
            if not self._open:
                self._tracker.open()
                self._find()
            whole = self._copy()
            self._check()
        except UsageError as error:
            self.problem, self._open = str(error), False
            self._next = time.monotonic() + _RETRY_SECONDS
            return False
        self.problem, self._next = None, time.monotonic() + _LOOK_SECONDS
        return whole

    def close(self, status: str) -> None:
        """Everything that can be told is told; runs that are still open end with `status`, FINISHED or KILLED."""
        if not self._tracker.uri:
            return
        self.look(now=True)
        if self._open and self._lock.is_locked:
            self._summary()
            self._tracker.stop()
            for key, run in self._runs.items():
                if key not in self._done:
                    self._tracker.finish(run, "KILLED")
            for run in (*self._arms.values(), self._study):
                self._tracker.finish(run, status)
            if self._tracker.problems:
                self.problem = self._tracker.problems[0]
        with contextlib.suppress(OSError):
            self._lock.release()

    def _check(self) -> None:
        """UsageError if the store refused anything since the last time."""
        if self._tracker.problems:
            first = self._tracker.problems[0]
            self._tracker.problems.clear()
            raise UsageError(first)

    def _find(self) -> None:
        """The runs that an earlier process left, and those of the study and its arms, which are begun where missing."""
        name, tracker = self._sweep.name, self._tracker
        found = tracker.tagged(_TRIAL, (_SWEEP, name))
        self._done = {key for key, (_, status) in found.items() if status in _ENDS.values() and self._ended(key)}
        self._runs = {key: run for key, (run, _) in found.items()}
        self._begun, self._seeds = set(), {}
        here = provenance()
        config = self._sweep.config
        note = (
            f"A sweep over {', '.join(arm.label for arm in self._studies.arms)} on {config.data.get('name')}, minimising "
            f"{' and '.join(self._studies.objectives)}: sampler {config.sampler}, pruner {config.pruner}, "
            f"{'the same tuning FLOPs for each arm' if config.tuning_flops else 'equal numbers of complete trials'}. "
            "Below: arms, their trials, and the seeds of each. Pruned trials are KILLED. Choose trials of one arm and compare them: "
            f"their parameters are what was searched. `{here['command']}`"
        )
        tags = {_SWEEP: name, "routelab.kind": "study", "git_revision": str(here["git_revision"])}
        self._study = tracker.start_parent(
            f"{name}: tuning",
            flatten(self._studies.config),
            {**tags, _TRIAL: "study"},
            note,
            run_id=found.get("study", ("", ""))[0],
        )
        if here["git_diff"]:
            tracker.log_text(self._study, here["git_diff"], "git_diff.txt")
        for arm in self._sweep.arms:
            key = f"arm {arm.label}"
            self._arms[arm.label] = tracker.start_parent(
                arm.label,
                # Not under the names themselves, whose columns hold the trials' numbers.
                {"arm": arm.label, **{f"search.{name}": in_words(each) for name, each in arm.dimensions.items()}},
                {_SWEEP: name, _TRIAL: key, "routelab.kind": "arm"},
                f"Trials of {arm.label}: {', '.join(arm.dimensions)}.",
                run_id=found.get(key, ("", ""))[0],
                parent_id=self._study,
            )
        self._check()
        self._open = True

    def _ended(self, key: str) -> bool:
        """Whether a trial's run may count as done: it was killed with its process, or pruned, and both are KILLED."""
        label, _, number = key.rpartition("/")
        arm = next((each for each in self._studies.arms if each.label == label), None)
        if arm is None or not number.isdigit():
            return False
        trials = arm.trials()
        return int(number) < len(trials) and trials[int(number)].state.is_finished()

    def _copy(self) -> bool:
        whole = True
        for arm in self._sweep.arms:
            study = next(each for each in self._studies.arms if each.label == arm.label)
            for trial in study.trials():
                key = f"{arm.label}/{trial.number}"
                if key in self._done or trial.state is TrialState.WAITING:
                    continue
                began = trial.datetime_start
                age = time.time() - began.timestamp() if began is not None else 0.0
                if not trial.state.is_finished() and age < _LIVE_SECONDS:
                    continue
                folders = [Path(folder) for folder in trial.user_attrs.get("folders", ())]
                if folders and not any(folder.is_dir() for folder in folders):
                    # Trained on a machine with results of its own, which tells of it.
                    continue
                settings = settings_of(trial)
                usual = {name: arm.space.current(name) for name in settings}
                self._trial(arm, trial, key, trial_name(arm.label, settings, usual), folders)
                self._check()
                whole = whole and key in self._done
        return whole

    def _trial(self, arm: SweepArm, trial: FrozenTrial, key: str, name: str, folders: list[Path]) -> None:
        tracker, error = self._tracker, trial.user_attrs.get("error")
        if key not in self._begun:
            # A run that is there may lack its settings, if the store died on them.
            settings = settings_of(trial)
            self._runs[key] = tracker.start_parent(
                name,
                {"arm": arm.label, "trial": trial.number, **settings},
                {_SWEEP: self._sweep.name, _TRIAL: key, "routelab.kind": "trial"},
                f"Trial {trial.number} of {arm.label}: " + ", ".join(f"{k}={v}" for k, v in settings.items()),
                run_id=self._runs.get(key),
                parent_id=self._arms[arm.label],
                began=_seconds(trial.datetime_start),
            )
            self._check()
            self._begun.add(key)
        run = self._runs[key]
        records = []
        for folder, seed in zip(folders, self._sweep.seeds, strict=False):
            record = read_json(folder / "record.json")
            records.append(record)
            self._seed(folder, record, run, f"{name}-s{seed}", seed, arm.label, ended=trial.state.is_finished())
        if not trial.state.is_finished():
            return
        names = (f"objective/{each}" for each in self._studies.objectives)
        numbers: dict[str, Any] = dict(zip(names, trial.values or (), strict=False))
        numbers |= {f"cost/{key}": value for key, value in trial.user_attrs.get("spent", {}).items()}
        numbers |= _means([record.get("validation") or {} for record in records if record])
        tags = {"routelab.state": trial.state.name}
        if error:
            tags |= {"routelab.error": error, "mlflow.note.content": f"{trial.state.name.capitalize()}: {error}"}
        tracker.note(run, tags, numbers, _seconds(trial.datetime_complete))
        for record in records:
            if record and record.get("traceback"):
                tracker.log_text(run, str(record["traceback"]), "traceback.txt")
        tracker.finish(run, _ENDS[trial.state], _seconds(trial.datetime_complete))
        if not tracker.problems:
            self._done.add(key)

    def _seed(
        self, folder: Path, record: dict[str, Any] | None, run: str, name: str, seed: int, label: str, *, ended: bool
    ) -> None:
        """The run of one seed: whole if its record is there, else as far as its curve goes."""
        tracker, cell = self._tracker, folder.name
        at = f"{run}/{cell}"
        if self._seeds.get(at) == "done":
            return
        points = _points(folder / POINTS)
        if record is None and (ended or not points):
            return
        if record is not None:
            # The study has the diff, and drawing every trial's load would cost more than all the rest; the record holds it.
            record = {**record, "load": None, "provenance": {**(record.get("provenance") or {}), "git_diff": None}}
        if at not in self._seeds:
            opening = {"arm": label, "seed": seed, "provenance": {"cell": cell}} | (record or {})
            self._seeds[at] = tracker.start_run(opening, run, name, seconds=finite((record or {}).get("seconds")) or 0.0)
        if record is None:
            tracker.log_points(self._seeds[at], points)
            return
        tracker.end_run(self._seeds[at], record, name)
        self._seeds[at] = "done"

    def _summary(self) -> None:
        """What the study and its arms say as a whole: best so far against tuning FLOPs, the best settings, tables, pictures."""
        for arm in self._studies.arms:
            run = self._arms.get(arm.label, "")
            self._tracker.log_numbers(run, _progress(arm))
            best = best_trials(arm.trials())
            if best:
                told = ", ".join(f"{key}={value}" for key, value in settings_of(best[0]).items())
                self._tracker.note(run, {"routelab.best": json.dumps(settings_of(best[0])), "routelab.best_trial": best[0].number,
                                        "mlflow.note.content": f"Best of {arm.label}: trial {best[0].number}, {told}"})  # fmt: skip
        folder = self._sweep.output / "pictures"
        try:
            drawn = pictures(self._studies, folder)
        except Exception as error:
            # Drawing is not worth a sweep.
            self._tracker.problems.append(f"the pictures of {self._sweep.name} were not drawn: {type(error).__name__}: {error}")
            return
        self._tracker.log_artifacts(self._study, drawn)
        whole = {"best": plain_best(self._studies), "importance": importance(self._studies), "tuning": tuning(self._studies)}
        self._tracker.log_text(self._study, json.dumps(plain(whole), indent=1), "summary.json")
        self._tracker.log_text(self._study, as_csv(self._studies), "trials.csv")


def _seconds(when: datetime | None) -> float | None:
    return None if when is None else when.timestamp()


def _progress(arm: ArmStudy) -> list[dict[str, Any]]:
    """After every complete trial: the best loss so far, and the FLOPs of all trials that had ended by then."""
    ended = sorted((t for t in arm.trials() if t.state.is_finished()), key=lambda t: str(t.datetime_complete))
    rows: list[dict[str, Any]] = []
    flops, best = 0.0, float("inf")
    for trial in ended:
        flops += trial.user_attrs.get("spent", {}).get("flops", 0.0)
        if trial.state is TrialState.COMPLETE:
            best = min(best, trial.values[0])
            rows.append(
                {"step": len(rows) + 1, "tuning/best_loss": best, "tuning/flops": flops, "tuning/loss": trial.values[0]}
            )
    return rows


def _means(groups: list[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for group in groups:
        for name, value in group.items():
            if (number := finite(value)) is not None:
                found.setdefault(f"val/{name}", []).append(number)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _points(path: Path) -> list[dict[str, Any]]:
    """The points of a run that is going on; a line that is being written is left for the next look."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
