"""Samplers and pruners by name, and where rungs lie."""

from routelab.sweeps.samplers import PrunerChoice, rung
from routelab.sweeps.worker_pool import shares


def pruner(value, rungs=14):
    return PrunerChoice.of(value, lambda: rungs, 1)


def test_a_rung_is_a_share_of_the_flops_of_a_whole_trial():
    assert [rung(flops, 100.0, 4) for flops in (0, 24.9, 25, 50, 99, 100, 230)] == [0, 0, 1, 2, 3, 4, 9]
    # Of sums of binary fractions, too.
    assert rung(0.1 + 0.2, 0.9, 3) == 1


def test_halving_looks_at_powers_of_its_factor_and_the_median_at_five_of_all():
    assert [r for r in range(1, 16) if pruner("successive_halving").asks(r)] == [1, 3, 9]
    assert [r for r in range(1, 16) if pruner({"name": "hyperband", "reduction_factor": 2}).asks(r)] == [1, 2, 4, 8]
    assert [r for r in range(1, 16) if pruner("median").asks(r)] == [3, 6, 9, 12, 15]
    assert [r for r in range(1, 5) if pruner("median", 3).asks(r)] == [1, 2, 3, 4]


def test_several_objectives_are_pruned_at_the_same_rungs():
    assert pruner({"name": "median", "startup": 3}).against_front(6) == (0.5, 3)
    assert pruner("successive_halving").against_front(9) == (1 / 3, 2)
    assert pruner("successive_halving").against_front(8) is None


def test_workers_share_the_cores_evenly():
    assert shares([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3, 4]]
    assert shares([0, 1], 3) == [[0], [1], [0]]
    assert shares([5], 1) == [[5]]
