"""Several data sets: by hand, against published values, and the coverage of the interval, simulated."""

import math

import numpy as np
import pytest

from routelab.comparison.statistics.cross_dataset_statistics import interquartile_mean, probability_of_improvement, ranks


def test_interquartile_mean_by_hand() -> None:
    # 8 values: the two lowest and the two highest are cut.
    found = interquartile_mean({"a": [-9.0, 1.0, 2.0, 3.0], "b": [0.0, 4.0, 5.0, 99.0]})
    assert found.mean == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert found.n == 2
    assert found.low < found.mean < found.high
    assert math.isnan(interquartile_mean({}).mean)
    assert math.isnan(interquartile_mean({"a": [math.nan]}).mean)
    assert interquartile_mean({"a": [1.0, 1.0], "b": [1.0, 1.0]}).low == 1.0


def test_interval_covers() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(60):
        found = interquartile_mean({str(i): rng.normal(0.2, 0.1, 10) for i in range(4)})
        hits += found.low <= 0.2 <= found.high
    assert 51 <= hits <= 60


def test_probability_of_improvement_by_hand() -> None:
    # a: pairs (1,2) (1,3) (2.5,3) are lower, (2.5,2) is not: 3/4. b: a tie counts half.
    found = probability_of_improvement({"a": [1.0, 2.5], "b": [1.0]}, {"a": [2.0, 3.0], "b": [1.0], "c": [5.0]})
    assert found == pytest.approx((0.75 + 0.5) / 2)
    assert math.isnan(probability_of_improvement({"a": [1.0]}, {"b": [1.0]}))


def test_ranks_have_the_published_critical_difference() -> None:
    """Demsar 2006, section 3.2: 4 algorithms on 14 data sets; q = 2.569, CD = 1.25."""
    rng = np.random.default_rng(1)
    names = [str(i) for i in range(14)]
    losses = {
        arm: {name: float(rng.normal(shift, 0.01)) for name in names} for arm, shift in zip("abcd", (0, 1, 2, 3), strict=True)
    }
    found = ranks(losses)
    assert found.critical == pytest.approx(1.25, abs=0.01)
    assert found.mean == {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert found.p < 1e-6
    assert ranks({arm: dict(list(of.items())[:4]) for arm, of in losses.items()}) is None
    assert ranks(dict(list(losses.items())[:2])) is None
    assert ranks({}) is None
