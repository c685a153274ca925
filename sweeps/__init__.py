"""Sweeps: the settings of each arm, chosen by Optuna at equal tuning budgets, by any number of workers that may die."""

from routers.lazy import lazy

__all__ = ["Sweep", "expected_best", "front", "open_sweep", "run_sweep"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Sweep": "sweeps.sweep",
        "expected_best": "sweeps.expected",
        "front": "sweeps.front",
        "open_sweep": "sweeps.sweep",
        "run_sweep": "sweeps.run",
    },
)
