"""Tuning cost of each arm, and the expected best loss after n trials (Dodge et al. 2019, Show Your Work)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from optuna.trial import TrialState

from routelab.sweeps.studies import Studies
from routelab.sweeps.study_status import ArmStudy, best_trials, settings_of


def tuning(studies: Studies) -> dict[str, Any]:
    """What tuning cost each arm and what it bought: for the report, and for whoever asks whether the budgets were equal."""
    return {arm.label: _bought(arm) for arm in studies.arms}


def _bought(arm: ArmStudy) -> dict[str, Any]:
    trials = arm.trials()
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    flops = [float(trial.user_attrs.get("spent", {}).get("flops", 0.0)) for trial in trials if trial.state.is_finished()]
    each = sum(flops) / len(done) if done else 0.0
    expected = expected_best([trial.values[0] for trial in done])
    best = best_trials(trials)
    return {
        "complete": len(done),
        "pruned": sum(trial.state is TrialState.PRUNED for trial in trials),
        "failed": sum(trial.state is TrialState.FAIL for trial in trials),
        "flops": sum(flops),
        # Pruned and failed trials are part of what a complete one costs.
        "expected_best": [{"trials": n, "flops": n * each, "loss": loss} for n, loss in enumerate(expected, 1)],
        "best": None
        if not best
        else {"trial": best[0].number, "values": list(best[0].values), "settings": settings_of(best[0])},
    }


def expected_best(losses: Sequence[float]) -> list[float]:
    """The expected lowest of n losses drawn with replacement from the N that were found, for n = 1 to N.

    With the distinct losses v and their empirical distribution F, P(min <= v) = 1 - (1 - F(v))^n, and the expectation is the sum
    of v times the step of that probability at v. The paper states it for the highest of a score; this is its mirror image. The
    trials should be alike, drawn at random: a sampler that learns makes later ones better, and the curve then is a description.
    """
    if not losses:
        return []
    if not all(math.isfinite(loss) for loss in losses):
        raise ValueError("losses must be finite")
    ordered, total = sorted(losses), len(losses)
    curve = []
    for n in range(1, total + 1):
        # The k-th lowest (0-based) is the minimum with probability (1 - k/N)^n - (1 - (k+1)/N)^n; ties add up by themselves.
        curve.append(sum(v * ((1 - k / total) ** n - (1 - (k + 1) / total) ** n) for k, v in enumerate(ordered)))
    return curve
