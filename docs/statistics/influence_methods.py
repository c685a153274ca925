"""Compare the delete-one jackknife with the linearisation (delta method) as the influence of test units on a log loss.

    python docs/statistics/influence_methods.py [results/digits --arm hash]

Without a folder, the script simulates the coverage of the 95% interval over seeds and units for two arms without a difference, whose
losses are lognormal over units. With the folder of a finished comparison, it prints the standard error over units of an arm's
difference from the reference by both methods and by a bootstrap of the units.

Axes: S seeds, U test units.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routelab.comparison.statistics.influence import metric_with_influence
from routelab.comparison.statistics.two_way import estimate_over_units, estimate_two_way

Floats = NDArray[np.float64]

SEEDS = 5
UNIT_SIGMA = 2.0
"""Standard deviation of the log losses over units."""
ARM_SIGMA, ERROR_SIGMA, SEED_SIGMA = 0.5, 0.3, 0.02
"""Standard deviations of the log losses: of an arm's effect on a unit, of a run's on a unit, of a run's on all units."""


def by_delta(loss_U: Floats) -> Floats:
    """Return the row of a table, (U,): the log of the mean loss plus its linearisation by unit."""
    return math.log(loss_U.mean()) + loss_U / loss_U.mean() - 1


def by_jackknife(loss_U: Floats) -> Floats:
    """Return the row of a table, (U,): the log of the mean loss plus the delete-one influence of each unit."""
    value, influence_U = metric_with_influence("log_loss", {"loss": loss_U, "count": np.ones(len(loss_U))})
    return value + influence_U


METHODS: dict[str, Callable[[Floats], Floats]] = {"delta method": by_delta, "jackknife": by_jackknife}


def simulate_coverage(units: int, draws: int, seed: int = 0) -> dict[str, float]:
    """Return the coverage of the 95% interval of a true difference of 0, by method.

    Args:
        units: Number of test units.
        draws: Number of comparisons.
        seed: Seed of the random numbers.
    """
    random = np.random.default_rng(seed)
    hits = dict.fromkeys(METHODS, 0)
    for _ in range(draws):
        common_U = UNIT_SIGMA * random.normal(size=units)
        arms = []
        for _ in range(2):
            arm_U = common_U + ARM_SIGMA * random.normal(size=units)
            error_SU = ERROR_SIGMA * random.normal(size=(SEEDS, units)) + SEED_SIGMA * random.normal(size=(SEEDS, 1))
            arms.append(np.exp(arm_U + error_SU))
        for name, method in METHODS.items():
            rows = [np.array([method(loss_U) for loss_U in loss_SU]) for loss_SU in arms]
            interval = estimate_two_way(rows[0] - rows[1]).interval()
            hits[name] += interval.low < 0 < interval.high
    return {name: count / draws for name, count in hits.items()}


def standard_errors(folder: Path, arm: str, draws: int = 2000) -> dict[str, float]:
    """Return the standard error over units of an arm's difference from the reference, by method.

    Args:
        folder: Folder of a finished comparison.
        arm: Label of the arm.
        draws: Number of bootstrap samples of the units.
    """
    import pandas as pd

    reference = json.loads((folder / "summary.json").read_text())["reference"]
    units = pd.read_parquet(folder / "units.parquet")
    loss = {
        label: units[units.arm == label].pivot_table(index="seed", columns="unit", values="loss", aggfunc="sum").to_numpy()
        for label in (arm, reference)
    }
    errors = {}
    for name, method in METHODS.items():
        rows = [np.array([method(loss_U) for loss_U in loss[label]]) for label in (arm, reference)]
        errors[name] = float(estimate_over_units(rows[0] - rows[1]).unit_error or math.nan)
    random, size = np.random.default_rng(0), loss[arm].shape[1]
    samples = [random.integers(0, size, size) for _ in range(draws)]
    values = [np.log(loss[arm][:, s].mean(1) / loss[reference][:, s].mean(1)).mean() for s in samples]
    return {**errors, "bootstrap": float(np.std(values, ddof=1))}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--arm", default="hash")
    parser.add_argument("--draws", type=int, default=1500)
    options = parser.parse_args()
    if options.folder is not None:
        for name, error in standard_errors(options.folder, options.arm).items():
            print(f"{name}: {error:.3f}")
        return
    print(f"| units | {' | '.join(METHODS)} |\n|---{'|---' * len(METHODS)}|")
    for units in (30, 100, 360):
        print(f"| {units} | " + " | ".join(f"{rate:.3f}" for rate in simulate_coverage(units, options.draws).values()) + " |")


if __name__ == "__main__":
    main()
