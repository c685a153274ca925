"""Pictures of a sweep, drawn by Optuna: the history of each arm, what mattered, and fronts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from routelab.report.plots.arm_plots import tuning_budget
from routelab.report.plots.plot_style import save_png
from routelab.sweeps.studies import Studies
from routelab.sweeps.tuning_cost import tuning


def pictures(studies: Studies, folder: Path) -> list[Path]:
    """Write the pictures that there are trials enough for; their paths."""
    import matplotlib as mpl

    drawn: list[Path] = []
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.use("Agg", force=False)
        warnings.simplefilter("ignore")
        from matplotlib import pyplot
        from optuna.visualization import matplotlib as plots

        bought = tuning_budget({"tuning": tuning(studies)}, [])
        if bought is not None:
            folder.mkdir(parents=True, exist_ok=True)
            drawn.append(folder / "expected-best.png")
            save_png(bought.figure, drawn[0])
        for arm in studies.arms:
            done = arm.trials(TrialState.COMPLETE)
            if len(done) < 2:
                continue
            which: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
                ("history", plots.plot_optimization_history, _OF_LOSS)
            ]
            if len({trial.values[0] for trial in done}) > 1:
                which.append(("importance", plots.plot_param_importances, _OF_LOSS))
            if len(studies.objectives) > 1:
                which.append(("front", plots.plot_pareto_front, {"target_names": studies.objectives}))
            for name, draw, options in which:
                path = folder / f"{name}-{_file(arm.label)}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                axes = draw(arm.study, **options)
                axes.figure.savefig(path, dpi=100, bbox_inches="tight")
                pyplot.close(axes.figure)
                drawn.append(path)
    return drawn


def _loss(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


_OF_LOSS: dict[str, Any] = {"target": _loss, "target_name": "validation loss"}


def _file(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_.=" else "_" for letter in label)
