"""Fronts by hand, and the rule that prunes against them."""

from routelab.core.pareto import dominates, falls_behind, front, ranks


def test_a_point_dominates_one_that_is_no_better_anywhere_and_worse_somewhere():
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))


def test_fronts_are_peeled_off_one_after_the_other():
    #       front 0: a, b; then c; then d, which c dominates
    points = [(1.0, 4.0), (3.0, 1.0), (3.0, 4.0), (4.0, 5.0)]
    assert ranks(points) == [0, 0, 1, 2]
    assert front(points) == [0, 1]
    assert ranks([(2.0,), (1.0,), (2.0,)]) == [1, 0, 1]


def test_a_trial_falls_behind_where_better_fronts_fill_the_share_that_is_kept():
    peers = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    # 3 of the 4 are on a better front.
    assert falls_behind((4.0, 4.0), peers, keep=0.5, least=3)
    assert falls_behind((4.0, 4.0), peers, keep=0.75, least=3)
    assert not falls_behind((4.0, 4.0), peers, keep=0.8, least=3)
    # Nothing dominates this one: it is on the front itself, cheap and bad.
    assert not falls_behind((9.0, 0.5), peers, keep=0.1, least=3)
    assert not falls_behind((4.0, 4.0), peers, keep=0.5, least=4)


def test_with_one_objective_the_rule_keeps_the_best_share():
    peers = [(float(value),) for value in range(1, 6)]
    assert not falls_behind((2.5,), peers, keep=0.5, least=1)  # 2 of 6 are better
    assert falls_behind((3.5,), peers, keep=0.5, least=1)  # 3 of 6 are
