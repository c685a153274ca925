"""Influence of test units on metrics: the jackknife by hand, oracles for the values, and sampling variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import r2_score

from routelab.comparison.statistics.influence import METRICS, metric_with_influence


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
def test_the_variance_of_the_influence_is_that_of_the_jackknife(metric):
    data = sums()
    value, influence = metric_with_influence(metric, data)
    without = [metric_with_influence(metric, {name: np.delete(x, unit) for name, x in data.items()})[0] for unit in range(12)]
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    assert influence == pytest.approx(11 * (np.mean(without) - np.array(without)))
    assert influence.var(ddof=1) / 12 == pytest.approx(11 / 12 * np.square(without - np.mean(without)).sum())
    assert value == pytest.approx(METRICS[metric]({name: np.array(x.sum()) for name, x in data.items()}))


@pytest.mark.parametrize("metric", METRICS)
def test_the_influence_is_nearly_the_derivative_for_many_units(metric):
    data = sums(2000, 3)
    value, influence = metric_with_influence(metric, data)
    for unit in (0, 7):
        weight = np.ones(2000)
        weight[unit] += 1e-6
        moved, _ = metric_with_influence(metric, {name: column * weight for name, column in data.items()})
        assert 2000 * (moved - value) / 1e-6 == pytest.approx(influence[unit], rel=0.02, abs=0.01 * influence.std())


def test_values_by_hand():
    data = {
        "count": np.array([1.0, 3.0]), "loss": np.array([2.0, 4.0]), "correct": np.array([1.0, 0.0]),
        "bytes": np.array([2.0, 6.0]),
    }  # fmt: skip
    loss, influence = metric_with_influence("loss", data)
    # 6 / 4 with both; without the first 4 / 3, without the second 2: their mean is 5 / 3.
    assert loss == 1.5
    assert influence == pytest.approx([1 / 3, -1 / 3])
    log, influence = metric_with_influence("log_loss", data)
    assert log == pytest.approx(math.log(1.5))
    assert influence == pytest.approx([math.log(2 / (4 / 3)) / 2, -math.log(2 / (4 / 3)) / 2])
    assert metric_with_influence("accuracy", data)[0] == 0.25
    assert metric_with_influence("bits_per_byte", data)[0] == pytest.approx(6 / math.log(2) / 8)


def test_r2_of_one_column_is_that_of_scikit_learn():
    random = np.random.default_rng(1)
    target = random.normal(2, 1, 50)
    predicted = target + random.normal(0, 0.5, 50)
    data = {
        "count": np.ones(50), "squared_error_0": (target - predicted) ** 2, "target_0": target, "target_square_0": target**2,
    }  # fmt: skip
    assert metric_with_influence("r2", data)[0] == pytest.approx(r2_score(target, predicted))


def test_a_loss_of_zero_and_constant_targets_have_no_influence():
    zero = {"count": np.ones(3), "loss": np.zeros(3)}
    value, influence = metric_with_influence("log_loss", zero)
    assert value == pytest.approx(math.log(1e-12))
    assert not influence.any()
    constant = {"count": np.ones(3), "squared_error_0": np.ones(3), "target_0": np.ones(3), "target_square_0": np.ones(3)}
    assert math.isnan(metric_with_influence("r2", constant)[0])


@pytest.mark.parametrize("metric", METRICS)
def test_the_variance_of_the_influence_is_that_over_samples_of_units(metric):
    population, random = sums(4000, 5), np.random.default_rng(2)
    samples = [random.integers(0, 4000, 300) for _ in range(400)]
    results = [
        metric_with_influence(metric, {name: column[sample] for name, column in population.items()}) for sample in samples
    ]
    spread = np.std([value for value, _ in results], ddof=1)
    foretold = math.sqrt(np.mean([influence.var(ddof=1) / 300 for _, influence in results]))
    assert foretold == pytest.approx(spread, rel=0.12)
