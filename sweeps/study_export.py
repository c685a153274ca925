"""A sweep as files and tables for others: trials.csv, best.yaml, and how much each setting mattered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState

from routelab.records.csv_io import csv_text
from routelab.records.json_io import write_text
from routelab.sweeps.studies import Studies
from routelab.sweeps.study_status import best_trials, settings_of


def rows(studies: Studies) -> list[dict[str, Any]]:
    """Every trial as plain data: arm, number, state, objectives, what it spent, its settings, and what went wrong."""
    found = []
    for arm in studies.arms:
        for trial in arm.trials():
            values = dict(zip(studies.objectives, trial.values or [None] * len(studies.objectives), strict=True))
            spent = {f"spent_{key}": value for key, value in trial.user_attrs.get("spent", {}).items()}
            found.append(
                {"arm": arm.label, "trial": trial.number, "state": trial.state.name, **values, **spent}
                | {f"param {key}": value for key, value in settings_of(trial).items()}
                | {"error": trial.user_attrs.get("error")}
            )
    return found


def export(studies: Studies, folder: Path) -> list[Path]:
    """Write trials.csv and, once an arm has a complete trial, best.yaml, a configuration for `routelab compare`."""
    paths = [folder / "trials.csv"]
    write_text(paths[0], as_csv(studies))
    if any(best_trials(arm.trials()) for arm in studies.arms):
        paths.append(folder / "best.yaml")
        write_text(paths[1], best_yaml(studies))
    return paths


def as_csv(studies: Studies) -> str:
    """The rows as a table with a header."""
    table = rows(studies)
    columns = list(dict.fromkeys(key for row in table for key in row if key != "error"))
    columns.append("error")
    return csv_text([columns, *([row.get(column) for column in columns] for row in table)])


def best_yaml(studies: Studies) -> str:
    """The comparison of the best settings, as `sweep run` ends with, in a file of its own."""
    from dataclasses import asdict

    from routelab.config.resolve import resolve
    from routelab.sweeps.final_comparison import final_config
    from routelab.sweeps.sweep import Sweep

    # Settings may be written down by other code than found them.
    config = asdict(final_config(Sweep(resolve(studies.config)), studies))
    for key in (
        "study",
        "storage",
        "trials",
        "tuning_flops",
        "trial_seeds",
        "objectives",
        "sampler",
        "pruner",
        "search",
        "arm",
        "output",
    ):
        del config[key]
    config["budget"] = {key: value for key, value in config["budget"].items() if value is not None}
    return f"# The best settings of the sweep {studies.name}: routelab compare best.yaml\n" + yaml.safe_dump(
        config, sort_keys=False
    )


def importance(studies: Studies) -> dict[str, dict[str, float]]:
    """For every arm, the share of each searched setting in the differences of loss (PED-ANOVA, Watanabe et al. 2023), the most
    important first; empty where there are too few trials, or none that differ."""
    found: dict[str, dict[str, float]] = {}
    for arm in studies.arms:
        done = arm.trials(TrialState.COMPLETE)
        found[arm.label] = {}
        if len({trial.values[0] for trial in done}) > 1:
            values = optuna.importance.get_param_importances(arm.study, target=lambda trial: trial.values[0])
            found[arm.label] = {key: float(value) for key, value in values.items()}
    return found
