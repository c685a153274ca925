"""A worker: claims a trial, trains it, tells it, and so on until no arm has room for another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import optuna
from optuna.trial import TrialState

from routelab.core.errors import UsageError
from routelab.sweeps.arm_settings import Settings
from routelab.sweeps.liveness import Heart, worker_id
from routelab.sweeps.storage import patiently
from routelab.sweeps.studies import Studies
from routelab.sweeps.study_status import CLAIM, ArmStudy, room, share, worker_of
from routelab.sweeps.sweep import Sweep, SweepArm
from routelab.sweeps.trial import Outcome, asking, run_trial

_IDLE_SECONDS = 1.0


@dataclass(frozen=True)
class Claim:
    """A trial that is this worker's: no other one trains it while this process lives."""

    arm: SweepArm
    study: ArmStudy
    trial: optuna.Trial
    settings: Settings


def claim(sweep: Sweep, studies: Studies, worker: str, heart: Heart) -> Claim | None:
    """The next trial: one that a dead worker left, one that is enqueued, or a new one, of the arm whose budget is spent least.

    None if no arm has room. Trials are counted and taken under one lock, so there are never more than were asked for.
    """
    with studies.store.claiming():
        known = studies.trials()
        if studies.recover(known):
            known = studies.trials()
        open_arms = []
        for arm in sweep.arms:
            study = next(each for each in studies.arms if each.label == arm.label)
            trials = known[arm.label]
            if room(study, trials):
                open_arms.append((share(study, trials), len(trials), arm, study))
        if not open_arms:
            return None
        _, number, arm, study = min(open_arms, key=lambda each: each[0])
        study.study.sampler = sweep.sampler.make(arm.label, number, arm.dimensions)
        if len(sweep.objectives) == 1:
            study.study.pruner = sweep.pruner.make()
        trial = study.study.ask()
        heart.on(trial._trial_id)
        # In here, so that the samplers of other workers know this point when they choose theirs.
        settings = arm.space.suggest(asking(trial))
        trial.set_user_attr(CLAIM, {"worker": worker, "settings": settings})
        return Claim(arm, study, trial, settings)


def tell(studies: Studies, taken: Claim, outcome: Outcome, worker: str) -> bool:
    """Write a trial's outcome, unless it was given to another worker meanwhile (this one was thought dead)."""
    store, trial_id = studies.store, taken.trial._trial_id
    with store.claiming():
        now = store.optuna.get_trial(trial_id)
        if now.state is not TrialState.RUNNING or worker_of(now) != worker:
            return False
        taken.trial.set_user_attr("spent", outcome.spent)
        if outcome.error:
            taken.trial.set_user_attr("error", outcome.error)
        taken.study.study.tell(taken.trial.number, outcome.values, outcome.state)
    return True


def work(sweep: Sweep, studies: Studies, ended: Callable[[], bool] = lambda: False) -> int:
    """Train trials until no arm has room and nobody is at work; the number of trials told. ended: asked between trials."""
    worker = worker_id()
    heart = Heart(studies.store, worker)
    told = 0
    while not ended():
        taken = patiently(lambda: claim(sweep, studies, worker, heart))
        if taken is None:
            if not patiently(lambda: any(arm.trials(TrialState.RUNNING) for arm in studies.arms)):
                break
            # Whoever is at work may yet die, and leave a trial.
            time.sleep(_IDLE_SECONDS)
            continue
        try:
            outcome = run_trial(sweep, taken.arm, taken.study, taken.trial, taken.settings)
        except UsageError:
            with studies.store.claiming():
                studies.release(studies.store.optuna.get_trial(taken.trial._trial_id))
            raise
        told += patiently(partial(tell, studies, taken, outcome, worker))
        heart.on(None)
    return told
