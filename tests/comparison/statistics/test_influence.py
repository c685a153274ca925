"""Influence of test units on metrics: derivatives by finite differences, oracles for the values, and sampling variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import r2_score

from routelab.comparison.statistics.influence import METRICS


def sums(units: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    count = random.integers(1, 9, units).astype(float)
    target, error = random.normal(size=(2, units, 2))
    columns = {f"squared_error_{k}": error[:, k] ** 2 for k in (0, 1)}
    columns |= {f"target_{k}": target[:, k] for k in (0, 1)} | {f"target_square_{k}": target[:, k] ** 2 for k in (0, 1)}
    return {
        "count": count, "loss": count * random.exponential(size=units), "correct": np.floor(count * random.random(units)),
        "bytes": 4 * count, **columns,
    }  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_influence_is_the_derivative_with_respect_to_the_weight_of_a_unit(metric):
    data = sums()
    value, influence = METRICS[metric](data)
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    for unit in range(3):
        weight = np.ones(12)
        weight[unit] += 1e-6
        moved, _ = METRICS[metric]({name: column * weight for name, column in data.items()})
        # The weight of a unit is one of 12.
        assert 12 * (moved - value) / 1e-6 == pytest.approx(influence[unit], rel=1e-4)


def test_values_by_hand():
    data = {
        "count": np.array([1.0, 3.0]), "loss": np.array([2.0, 4.0]), "correct": np.array([1.0, 0.0]),
        "bytes": np.array([2.0, 6.0]),
    }  # fmt: skip
    loss, influence = METRICS["loss"](data)
    # Mean 6 / 4; the influence of a unit is 2 (x - 1.5 c) / 4.
    assert loss == 1.5
    assert influence.tolist() == [0.25, -0.25]
    log, influence = METRICS["log_loss"](data)
    assert log == pytest.approx(math.log(1.5))
    assert influence == pytest.approx([0.25 / 1.5, -0.25 / 1.5])
    assert METRICS["accuracy"](data)[0] == 0.25
    assert METRICS["bits_per_byte"](data)[0] == pytest.approx(6 / math.log(2) / 8)


def test_r2_of_one_column_is_that_of_scikit_learn():
    random = np.random.default_rng(1)
    target = random.normal(2, 1, 50)
    predicted = target + random.normal(0, 0.5, 50)
    data = {
        "count": np.ones(50), "squared_error_0": (target - predicted) ** 2, "target_0": target, "target_square_0": target**2,
    }  # fmt: skip
    assert METRICS["r2"](data)[0] == pytest.approx(r2_score(target, predicted))


def test_a_loss_of_zero_and_constant_targets_have_no_influence():
    zero = {"count": np.ones(3), "loss": np.zeros(3)}
    value, influence = METRICS["log_loss"](zero)
    assert value == pytest.approx(math.log(1e-12))
    assert not influence.any()
    constant = {"count": np.ones(3), "squared_error_0": np.ones(3), "target_0": np.ones(3), "target_square_0": np.ones(3)}
    assert math.isnan(METRICS["r2"](constant)[0])


@pytest.mark.parametrize("metric", METRICS)
def test_the_variance_of_the_influence_is_that_over_samples_of_units(metric):
    population, random = sums(4000, 5), np.random.default_rng(2)
    samples = [random.integers(0, 4000, 300) for _ in range(400)]
    results = [METRICS[metric]({name: column[sample] for name, column in population.items()}) for sample in samples]
    spread = np.std([value for value, _ in results], ddof=1)
    foretold = math.sqrt(np.mean([influence.var(ddof=1) / 300 for _, influence in results]))
    assert foretold == pytest.approx(spread, rel=0.12)
