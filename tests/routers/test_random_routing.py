"""The random control: uniform draws, evaluation without any, and weights that ask for no gradient."""

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.plans import Blend


def counts(expert, experts):
    return torch.bincount(expert.reshape(-1), minlength=experts)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_choices_are_uniform_and_distinct(k, training):
    """6000 k / 6 per expert; five standard deviations of a binomial are 5 sqrt(6000 k / 6 * 5 / 6) = 144 for k = 1."""
    torch.manual_seed(0)
    router = build_router("random", d_model=2, num_experts=6, top_k=k).train(training)
    plan = router(RouterInput(torch.zeros(60, 100, 2), torch.arange(6000).view(60, 100))).plan
    assert (counts(plan.expert, 6) - 1000 * k).abs().max() < 144 * k
    assert all(len(set(row)) == k for row in plan.expert.tolist())
    assert torch.equal(plan.weight, torch.full((6000, k), 1 / k))
    assert not plan.weight.requires_grad


def test_training_draws_from_the_global_generator():
    router, x = build_router("random", d_model=2, num_experts=6), torch.zeros(2, 50, 2)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(router(RouterInput(x)).plan.expert)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_evaluation_hash_reads_position_and_id_only(data):
    router = build_router("random", d_model=8, num_experts=4).eval()
    x, ids = data(2, 30)
    other, _ = data(2, 30, seed=1)
    expert = router(RouterInput(x, ids)).plan.expert.view(2, 30)
    assert torch.equal(router(RouterInput(other, ids)).plan.expert.view(2, 30), expert)
    changed = router(RouterInput(x, ids + 1)).plan.expert.view(2, 30)
    assert 25 < int((changed != expert).sum()) < 60, "about three in four of 60 should move"
    same = router(RouterInput(x, torch.full_like(ids, 7))).plan.expert.view(2, 30)
    assert torch.equal(same[0], same[1])
    assert same[0].unique().numel() == 4, "one id at 30 positions"
    without = router(RouterInput(x)).plan.expert.view(2, 30)
    assert torch.equal(without[0], without[1])
    assert without[0].unique().numel() == 4


def test_salt_separates_layers_and_seeds():
    inputs = RouterInput(torch.zeros(1, 100, 2))
    chosen = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        chosen.append(build_router("random", d_model=2, num_experts=4).eval()(inputs).plan.expert)
    assert 50 < int((chosen[0] != chosen[1]).sum()) < 100


def test_blend_is_the_mean_of_all_experts():
    router = build_router("random", d_model=2, num_experts=4, evaluation="blend").eval()
    plan = router(RouterInput(torch.zeros(2, 3, 2))).plan
    assert isinstance(plan, Blend)
    assert torch.equal(plan.weight, torch.full((6, 4), 0.25))
    assert router.per_token
    assert router.nominal_rows(2, 3) == 24
    assert not build_router("random", d_model=2, num_experts=4).per_token


def test_frozen_is_the_argmax_of_a_fixed_product():
    router = build_router("random", d_model=2, num_experts=3, frozen=True)
    router.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    x = torch.tensor([[[2.0, 1.0], [1.0, 2.0], [-1.0, -1.0]]])
    for training in (True, False):
        assert router.train(training)(RouterInput(x)).plan.expert.flatten().tolist() == [0, 1, 2]
    assert not list(router.parameters())
    assert router.cost(2, 5).training == 2 * 10 * 2 * 3
    assert build_router("random", d_model=2, num_experts=3).cost(2, 5).training == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, "top_k is 5; it must be between 1 and the number of experts"),
        ({"evaluation": "mean"}, "evaluation is 'mean'; it must be 'hash' or 'blend'"),
        ({"frozen": True, "evaluation": "blend"}, "frozen=True evaluates as it trains"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        build_router("random", d_model=2, num_experts=4, **options)
