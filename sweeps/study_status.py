"""Status of a study from its trials: the spent and the remaining budget, and the best trials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from routelab.core.pareto import front

if TYPE_CHECKING:
    from routelab.sweeps.studies import Studies

CLAIM = "claim"
"""The attribute of a trial that holds its worker and its settings: one, as every attribute is a transaction."""


@dataclass(frozen=True)
class ArmStudy:
    """One arm's study. target: complete trials that it is to have; flops: FLOPs that it may spend. One of them is None.

    size: of a grid, how many points it has.
    """

    label: str
    study: optuna.Study
    target: int | None
    flops: float | None
    size: int | None

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Its trials, all or in these states, as they are in the storage now."""
        return self.study.get_trials(deepcopy=False, states=states or None)


def spent(trials: Sequence[FrozenTrial]) -> float:
    """Training FLOPs of all trials that have ended, however they did."""
    return float(sum(trial.user_attrs.get("spent", {}).get("flops", 0.0) for trial in trials if trial.state.is_finished()))


def room(arm: ArmStudy, trials: Sequence[FrozenTrial]) -> bool:
    """Whether another trial of an arm may begin, counting those that are running as if they were done."""
    count = Counter(trial.state for trial in trials)
    running, ended = count[TrialState.RUNNING], sum(trial.state.is_finished() for trial in trials)
    if given_up(arm, trials) or (arm.size is not None and ended + running >= arm.size):
        return False
    if arm.target is not None:
        return count[TrialState.COMPLETE] + running < arm.target
    assert arm.flops is not None
    used = spent(trials)
    return used + running * (used / ended if ended else 0.0) < arm.flops


def given_up(arm: ArmStudy, trials: Sequence[FrozenTrial]) -> bool:
    """Whether an arm fails so often that it will not get to its trials."""
    failed = sum(trial.state is TrialState.FAIL for trial in trials)
    return failed >= max(5, 2 * (arm.target or 5)) and failed > sum(trial.state is TrialState.COMPLETE for trial in trials)


def share(arm: ArmStudy, trials: Sequence[FrozenTrial]) -> float:
    """How much of an arm's budget is spent, running trials included."""
    running = sum(trial.state is TrialState.RUNNING for trial in trials)
    if arm.target is not None:
        return (sum(trial.state is TrialState.COMPLETE for trial in trials) + running) / arm.target
    ended = sum(trial.state.is_finished() for trial in trials)
    return spent(trials) * (1 + running / max(1, ended)) / (arm.flops or math.inf)


def best_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Of the complete trials the one with the lowest loss, or with several objectives their front by rising loss."""
    done = sorted(
        (trial for trial in trials if trial.state is TrialState.COMPLETE), key=lambda trial: (trial.values, trial.number)
    )
    if not done or len(done[0].values) == 1:
        return done[:1]
    return [done[i] for i in front([trial.values for trial in done])]


def worker_of(trial: FrozenTrial) -> str | None:
    """The worker that claimed a trial last; None before the first claim was written whole."""
    worker: str | None = trial.user_attrs.get(CLAIM, {}).get("worker")
    return worker


def settings_of(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial was trained with."""
    found: dict[str, Any] = trial.user_attrs.get(CLAIM, {}).get("settings", trial.params)
    return found


def searched(trial: FrozenTrial) -> dict[str, Any]:
    """Of what a trial was trained with, what was searched; not always what was drawn, see `Space.suggest`."""
    settings = settings_of(trial)
    return {key: settings.get(key, value) for key, value in trial.params.items()}


def plain_best(studies: Studies) -> dict[str, Any]:
    """The best settings of every arm, and with several objectives its whole front, as plain data."""
    found: dict[str, Any] = {}
    for arm in studies.arms:
        rows = [
            {"trial": trial.number, **dict(zip(studies.objectives, trial.values, strict=True)), "settings": settings_of(trial)}
            for trial in best_trials(arm.trials())
        ]
        found[arm.label] = {"best": rows[0] if rows else None, "front": rows}
    return found
