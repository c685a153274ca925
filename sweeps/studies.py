"""The Optuna studies of a sweep, one for each arm, and what they say. Needs no torch, so that looking costs little.

A study is called SWEEP/ARM. Its user attributes hold the configuration, so a worker needs the name and the storage alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from routelab.core.errors import UsageError, unknown
from routelab.records.json_io import read_json, write_json
from routelab.sweeps.liveness import gone
from routelab.sweeps.storage import Store, open_store
from routelab.sweeps.study_status import ArmStudy, best_trials, given_up, room, searched, spent, worker_of

POINTER = "sweep.json"

_DEATHS = 10
"""Workers that a trial may cost without getting any further before it is called failed."""


class Studies:
    """All studies of a sweep in one storage."""

    def __init__(
        self, name: str, store: Store, arms: Sequence[ArmStudy], config: dict[str, Any], identity: dict[str, Any]
    ) -> None:
        self.name, self.store, self.arms, self.config, self.identity = name, store, list(arms), config, identity

    @classmethod
    def load(cls, name: str, store: Store) -> Studies | None:
        """The sweep of this name; None if the storage has none."""
        found = []
        for summary in optuna.get_all_study_summaries(store.optuna, include_best_trial=False):
            about = summary.user_attrs.get("routelab.sweep")
            if isinstance(about, dict) and about.get("sweep") == name:
                study = optuna.load_study(study_name=summary.study_name, storage=store.optuna)
                found.append(
                    (about["position"], ArmStudy(about["arm"], study, about["target"], about["flops"], about["size"]), about)
                )
        if not found:
            return None
        found.sort(key=lambda each: each[0])
        return cls(name, store, [arm for _, arm, _ in found], found[0][2]["config"], found[0][2]["identity"])

    @property
    def objectives(self) -> list[str]:
        """What is minimised."""
        return list(self.identity["objectives"])

    def trials(self) -> dict[str, list[FrozenTrial]]:
        """The trials of every arm, as they are in the storage now."""
        return {arm.label: arm.trials() for arm in self.arms}

    def recover(self, trials: Mapping[str, Sequence[FrozenTrial]] | None = None) -> int:
        """Hand the trials of dead workers back, to be taken up where they are; how many there were. Only while claiming.

        trials: as they are now, if they have been read already.
        """
        found = 0
        known = self.trials() if trials is None else trials
        for arm in self.arms:
            for trial in known[arm.label]:
                if trial.state is not TrialState.RUNNING or not self.store.dead(arm.study, trial, worker_of(trial)):
                    continue
                found += 1
                place, deaths = self._place(trial), trial.user_attrs.get("deaths", {})
                count = deaths.get("count", 0) + 1 if deaths.get("place") == place else 1
                self.store.optuna.set_trial_user_attr(trial._trial_id, "deaths", {"count": count, "place": place})
                if count > _DEATHS:
                    error = f"{count} workers died on this trial and none got further (out of memory?)"
                    self.store.optuna.set_trial_user_attr(trial._trial_id, "error", error)
                    arm.study.tell(trial.number, state=TrialState.FAIL)
                else:
                    self.release(trial)
        return found

    def release(self, trial: FrozenTrial) -> None:
        """RUNNING -> WAITING: with its number, its parameters and its checkpoint, for the next worker that asks."""
        self.store.optuna.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)

    def _place(self, trial: FrozenTrial) -> float:
        """How far a trial has got: when the newest file of its cells was written."""
        newest = 0.0
        for folder in trial.user_attrs.get("folders", ()):
            for path in (Path(folder) / "state.ckpt", Path(folder) / "record.json"):
                newest = max(newest, path.stat().st_mtime if path.is_file() else 0.0)
        return newest

    def status(self) -> dict[str, Any]:
        """What there is, as plain data; see `routelab sweep status --json`."""
        arms = {arm.label: self._arm_status(arm) for arm in self.arms}
        states = Counter[str]()
        for each in arms.values():
            states.update(each["states"])
        return {
            "study": self.name,
            "storage": self.store.url,
            "objectives": self.objectives,
            "states": dict(sorted(states.items())),
            "trials": sum(arm.target or 0 for arm in self.arms) or None,
            "tuning_flops": self.arms[0].flops,
            "lost": sum(each["lost"] for each in arms.values()),
            "done": all(each["done"] for each in arms.values()),
            "arms": arms,
        }

    def _arm_status(self, arm: ArmStudy) -> dict[str, Any]:
        trials = arm.trials()
        running = [trial for trial in trials if trial.state is TrialState.RUNNING]
        best = best_trials(trials)
        return {
            "states": dict(Counter(trial.state.name for trial in trials)),
            "target": arm.target,
            "flops": spent(trials),
            "flops_budget": arm.flops,
            "seconds": sum(trial.user_attrs.get("spent", {}).get("seconds", 0.0) for trial in trials),
            "lost": sum(bool(gone(worker_of(trial) or "")) for trial in running),
            "best": None if not best else {"trial": best[0].number, "values": best[0].values, "params": searched(best[0])},
            "front": [trial.number for trial in best],
            "done": not running and not room(arm, trials),
            "given_up": given_up(arm, trials),
        }


def find(name: str, storage: str | None) -> Studies:
    """A sweep by its name, or by the folder that it writes to. storage: where it lies; None: as `sweep run` left word.

    UsageError if there is no such sweep.
    """
    folder = Path(name)
    noted = read_json(folder / POINTER) or read_json(Path("results") / name / POINTER) or {}
    url = storage or noted.get("storage")
    if not isinstance(url, str):
        for place in (folder / POINTER, Path("results") / name / POINTER):
            if place.is_file():
                raise UsageError(f"study {name!r}: {str(place)!r} is damaged; say where the study lies with --storage URL")
        known = sorted(path.parent.name for path in Path("results").glob(f"*/{POINTER}"))
        raise (
            unknown("study", name, known)
            if known
            else UsageError(
                f"there is no study {name!r} in results/; begin one with `routelab sweep run`, or say where it lies with --storage URL"
            )
        )
    store = open_store(url, create=False)
    found = Studies.load(noted.get("study", name), store)
    if found is None:
        names = {(each.user_attrs.get("routelab.sweep") or {}).get("sweep") for each in
                 optuna.get_all_study_summaries(store.optuna, include_best_trial=False)}  # fmt: skip
        raise unknown(f"study in {store.url}", name, [each for each in names if each])
    return found


def leave_word(name: str, output: Path, url: str) -> None:
    """Note where a sweep lies, so that its name is enough for the other commands."""
    about = {"study": name, "storage": url, "output": str(output)}
    for folder in {output, Path("results") / name}:
        if read_json(folder / POINTER) != about:
            write_json(folder / POINTER, about)


def changed(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first dotted key in which two nested mappings differ; None if they are equal."""
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found = changed(a, b, f"{prefix}{key}.")
            if found:
                return found
        elif json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
            return f"{prefix}{key}"
    return None
