"""BASE: an exact balanced assignment in training, everyone's favourite in evaluation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from routelab.routers.balanced_assignment import balanced_assignment
from routelab.routers.base import RouterInput
from routelab.routers.base_layers import assign
from routelab.routers.build import build_router


def best_sum(score):
    """The optimum by a general solver: a column for every place; the extra places that stay empty are taken by dummy rows."""
    tokens, experts = score.shape
    quota, rest = divmod(tokens, experts)
    places = np.repeat(score, quota, axis=1)
    if rest:
        dummies = experts - rest
        none = np.full((dummies, experts * quota), -np.inf)
        places = np.block([[places, score], [none, np.zeros((dummies, experts))]])
    row, column = linear_sum_assignment(places, maximize=True)
    return places[row, column].sum()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 30), st.integers(1, 6), st.sampled_from([0.01, 1.0, 100.0]), st.booleans(), st.integers(0, 10**6))
def test_assignment_is_the_optimum_of_a_general_solver(tokens, experts, scale, ties, seed):
    generator = np.random.default_rng(seed)
    score = generator.normal(size=(tokens, experts)) * scale + generator.normal(size=experts)
    score = score.round() if ties else score
    chosen = balanced_assignment(score)
    load = np.bincount(chosen, minlength=experts)
    assert load.sum() == tokens
    assert load.max() - load.min() <= 1
    if tokens:
        assert score[np.arange(tokens), chosen].sum() == pytest.approx(best_sum(score), abs=1e-7)


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_assignment_is_the_optimum_at_the_size_of_a_batch(skew):
    score = np.random.default_rng(0).normal(size=(515, 8)) + skew * np.arange(8)
    chosen = balanced_assignment(score)
    assert sorted(np.bincount(chosen)) == [64] * 5 + [65] * 3
    assert score[np.arange(515), chosen].sum() == pytest.approx(best_sum(score), abs=1e-7)


def test_assignment_by_hand():
    """All four prefer expert 0; it keeps the two that lose most by leaving: losses 3, 1, 2.5, 0.5."""
    score = np.array([[3.0, 0.0], [2.0, 1.0], [3.0, 0.5], [1.0, 0.5]])
    assert balanced_assignment(score).tolist() == [0, 1, 0, 1]
    # Three tokens: expert 0 holds the extra place, and only the cheapest leaves.
    assert balanced_assignment(score[:3]).tolist() == [0, 1, 0]


def test_a_chain_of_moves_beats_the_direct_one():
    """Expert 0 has two tokens, expert 2 none. Directly t0 or t1 loses 5; by way of expert 1, 1 + 1."""
    score = np.array([[5.0, 4.0, 0.0], [9.0, 0.0, 4.0], [0.0, 5.0, 4.0]])
    assert balanced_assignment(score).tolist() == [1, 0, 2]


def test_training_balances_and_evaluation_does_not():
    router = build_router("base", d_model=2, num_experts=2)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x = torch.tensor([[[3.0, 0.0], [2.0, 1.0]], [[3.0, 0.5], [1.0, 0.5]]])
    plan = router(RouterInput(x)).plan
    assert plan.expert.flatten().tolist() == [0, 1, 0, 1]
    assert torch.allclose(plan.weight.flatten(), torch.tensor([3.0, 1.0, 3.0, 0.5]).sigmoid())
    plan = router.eval()(RouterInput(x)).plan
    assert plan.expert.flatten().tolist() == [0, 0, 0, 0]
    assert torch.allclose(plan.weight.flatten(), torch.tensor([3.0, 2.0, 3.0, 1.0]).sigmoid())
    assert router.per_token


def test_padding_takes_no_place():
    """Without the two masked tokens each expert takes one of the two real ones, both of which prefer expert 0."""
    logits = torch.tensor([[9.0, 0.0], [3.0, 0.0], [9.0, 0.0], [2.0, 1.0]])
    expert = assign(logits, torch.tensor([False, True, False, True]))
    assert expert[[1, 3]].tolist() == [0, 1]
    assert assign(logits, torch.zeros(4, dtype=torch.bool)).tolist() == [0, 0, 0, 0]


def test_a_diverged_run_does_not_stop_the_solver():
    logits = torch.tensor([[float("nan"), 1.0], [float("inf"), 0.0], [0.0, -float("inf")], [1.0, 0.0]])
    assert assign(logits).bincount().tolist() == [2, 2]


def test_cost_is_that_of_the_product():
    assert build_router("base", d_model=8, num_experts=4).cost(2, 6).training == 3 * 2 * 12 * 8 * 4


def test_only_training_couples_the_batch(make_layer, data):
    layer = make_layer("base")
    assert layer.batch_coupled
    assert not layer.evaluation_coupled
    x, ids = data(3, 8)
    whole = layer.eval()(x, ids)[0]
    assert torch.allclose(whole[1:2], layer(x[1:2], ids[1:2])[0], atol=1e-5)
