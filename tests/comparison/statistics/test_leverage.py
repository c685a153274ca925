"""Leverage: by hand, on curves where it is known, and the coverage of its interval, simulated."""

import math

import numpy as np
import pytest

from routelab.comparison.statistics.leverage import (
    Endpoints,
    Reach,
    best_so_far,
    common_range,
    cost_to,
    effective_size,
    hypervolume,
    leverage,
    log_leverage,
)

LADDER = [(1e9, 3.0), (1e10, 2.0), (1e11, 1.5)]


def test_envelope_leaves_out_what_is_dearer_and_no_better() -> None:
    points = [(4.0, 1.0), (1.0, 3.0), (2.0, 3.5), (3.0, 3.0), (5.0, 1.0), (6.0, math.nan)]
    assert best_so_far(points) == [(1.0, 3.0), (4.0, 1.0)]


def test_cost_to_a_loss_is_interpolated_in_log_cost() -> None:
    assert cost_to(2.5, LADDER) == Reach(pytest.approx(10**9.5), "=")
    assert cost_to(2.0, LADDER) == Reach(pytest.approx(1e10), "=")
    assert cost_to(3.2, LADDER) == Reach(1e9, "<")
    assert cost_to(1.4, LADDER) == Reach(1e11, ">")
    with pytest.raises(ValueError, match="finite"):
        cost_to(1.0, [(1.0, math.nan)])


def test_leverage_of_an_arm_that_needs_half() -> None:
    cheaper = [(cost / 2, loss) for cost, loss in LADDER]
    assert np.exp(log_leverage(LADDER, cheaper, [2.5, 1.7])) == pytest.approx([2.0, 2.0])
    assert np.isnan(log_leverage(LADDER, cheaper, [1.2, 3.1])).all()
    assert common_range(LADDER, [(1e9, 2.5), (1e10, 1.0)]) == (1.5, 2.5)
    assert common_range(LADDER, [(1e9, 1.2)]) is None


def as_table(points, n=4):
    cost, loss = np.array(points).T
    return Endpoints(np.repeat(cost[:, None], n, 1), np.repeat(loss[:, None], n, 1))


def test_seeds_that_agree_leave_no_doubt() -> None:
    found = leverage(as_table(LADDER), as_table([(cost / 3, loss) for cost, loss in LADDER]))
    assert len(found.at) == 3
    for _, interval in found.at:
        assert (interval.mean, interval.low, interval.high) == pytest.approx((3.0, 3.0, 3.0))
    assert found.mean.mean == pytest.approx(3.0)


def test_one_budget_has_one_target_its_own_loss() -> None:
    found = leverage(as_table(LADDER), as_table([(5e9, 2.0)]))
    assert [loss for loss, _ in found.at] == [2.0]
    assert found.at[0][1].mean == pytest.approx(2.0)
    assert found.mean is None


def test_an_arm_out_of_the_ladders_reach_has_no_leverage() -> None:
    assert leverage(as_table(LADDER), as_table([(1e9, 1.0)])).at == []
    assert leverage(as_table(LADDER), as_table([(1e9, 5.0)])).at == []


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        leverage(as_table(LADDER, 4), as_table(LADDER, 3))


@pytest.mark.parametrize("n", [4, 8])
def test_interval_covers(n: int) -> None:
    """Power laws with noise that is partly shared by the seeds: the true leverage of 1.8 lies inside about 95 times in 100."""
    rng, hits, trials = np.random.default_rng(n), 0, 300
    cost = np.logspace(9, 11, 5)
    law = lambda c: 1.0 + 2.0 * (c / 1e9) ** -0.2  # noqa: E731
    for _ in range(trials):
        shared = rng.normal(0, 0.01, n)
        noise = lambda: shared + rng.normal(0, 0.01, (5, n))  # noqa: E731, B023
        dense, arm = law(cost)[:, None] + noise(), law(1.8 * cost)[:, None] + noise()
        table = np.repeat(cost[:, None], n, 1)
        found = leverage(Endpoints(table, dense), Endpoints(table, arm))
        hits += found.mean.low <= 1.8 <= found.mean.high
    # Interpolating a power law in (log C, L) over half decades is itself off by about a percent.
    assert 0.90 <= hits / trials <= 0.99


@pytest.mark.parametrize("uncertainty", [["seeds"], ["examples"], ["seeds", "examples"]])
def test_interval_covers_test_units(uncertainty: list[str]) -> None:
    """Losses that units share between runs and differ in between arms: about the population of units, seeds alone cover too little."""
    rng, hits, trials, n, units = np.random.default_rng(9), 0, 100, 5, 100
    cost = np.logspace(9, 11, 5)
    law = lambda c: 1.0 + 2.0 * (c / 1e9) ** -0.2  # noqa: E731
    table = np.repeat(cost[:, None], n, 1)
    for _ in range(trials):
        level = rng.normal(0, 0.5, units)
        sides = []
        for factor in (1.0, 1.8):
            # A unit's loss has a part of its own, one with the arm and one with the run.
            own = rng.normal(0, 0.15, units)
            loss = (
                law(factor * cost)[:, None, None]
                + level
                + own
                + rng.normal(0, 0.01, (5, n, 1))
                + rng.normal(0, 0.05, (5, n, units))
            )
            groups = np.arange(units) % 20
            without = np.stack([loss[..., groups != g].mean(-1) for g in range(20)])
            sides.append(Endpoints(table, loss.mean(-1), without))
        found = leverage(*sides, uncertainty=uncertainty)
        hits += found.mean.low <= 1.8 <= found.mean.high
    if "examples" in uncertainty:
        assert 0.90 <= hits / trials <= 1.0
    else:
        assert hits / trials < 0.8


def test_the_jackknife_over_groups_by_hand() -> None:
    """One rung each side of the target and two groups: log EL is linear in the arm's loss, so its variance is that of the loss."""
    dense = Endpoints(np.array([[1.0], [math.e]]), np.array([[2.0], [1.0]]), np.array([[[2.0], [1.0]]] * 2))
    arm = Endpoints(np.array([[1.0]]), np.array([[1.5]]), np.array([[[1.4]], [[1.6]]]))
    found = leverage(dense, arm, uncertainty=["examples"]).at[0][1]
    # log EL = 2 - loss: .5; without each group .6 and .4, so the variance is 1/2 (.1^2 + .1^2) = .01 with one degree of freedom.
    half = 12.7062 * 0.1
    assert found.mean == pytest.approx(math.exp(0.5))
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-4)


def test_effective_size() -> None:
    sizes = [(1e5, 2.0), (4e5, 1.0)]
    assert effective_size(1.5, sizes) == Reach(pytest.approx(2e5), "=")
    assert effective_size(0.5, sizes) == Reach(4e5, ">")


def test_hypervolume_by_hand() -> None:
    # Two rectangles: from 1e9 to 1e10 below 4 down to 3, from 1e10 to 1e12 down to 2.
    assert hypervolume([(1e9, 3.0), (1e10, 2.0), (1e11, 2.5)], (1e12, 4.0)) == pytest.approx(1 * 1 + 2 * 2)
    assert hypervolume([(1e13, 1.0), (1e9, 5.0)], (1e12, 4.0)) == 0.0
