"""The expected best against its definition."""

import itertools

import pytest

from routelab.sweeps.tuning_cost import expected_best


def test_the_first_is_the_mean_and_two_draws_are_counted_by_hand():
    # Of (1, 3) drawn twice with replacement: 11, 13, 31, 33 -> minima 1, 1, 1, 3.
    assert expected_best([3.0, 1.0]) == pytest.approx([2.0, 1.5])


def test_it_is_the_mean_minimum_over_all_draws_with_replacement():
    losses = [0.7, 0.2, 0.9, 0.2]
    for n, value in enumerate(expected_best(losses), 1):
        draws = [min(draw) for draw in itertools.product(losses, repeat=n)]
        assert value == pytest.approx(sum(draws) / len(draws))


def test_nothing_gives_nothing_and_what_is_not_finite_is_refused():
    assert expected_best([]) == []
    with pytest.raises(ValueError, match="finite"):
        expected_best([1.0, float("nan")])
