"""Hyperparameter sweeps with Optuna: equal tuning budgets for all arms, and workers that may die."""

from routelab.core.lazy_imports import lazy

__all__ = ["Sweep", "expected_best", "front", "open_sweep", "run_sweep"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Sweep": "routelab.sweeps.sweep",
        "expected_best": "routelab.sweeps.tuning_cost",
        "front": "routelab.core.pareto",
        "open_sweep": "routelab.sweeps.sweep",
        "run_sweep": "routelab.sweeps.runner",
    },
)
