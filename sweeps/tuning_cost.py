"""What tuning cost every arm, and what it bought."""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState

from routelab.sweeps.expected_best import expected_best
from routelab.sweeps.studies import ArmStudy, Studies, best_trials, settings_of


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
