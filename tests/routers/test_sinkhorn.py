"""Sinkhorn: nearly balanced choices in training, plain ones in evaluation, weights from the plain logits."""

import math

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.sinkhorn import column_potentials


def test_potentials_by_hand():
    """exp(l) = [[4, 1], [1, 1]]. Scaling keeps the cross ratio 4, so the doubly stochastic plan is [[2, 1], [1, 2]] / 3.

    Its second row is 1 : 2 where exp(l) has 1 : 1, so the columns' factors are as 1 to 2.
    """
    column = column_potentials(torch.tensor([[4.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log(), 1000, 1e-12)
    assert (column[1] - column[0]).exp().item() == pytest.approx(2.0)


def test_sums_of_the_plan():
    score = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + torch.arange(5)
    column = column_potentials(score, 1000, 1e-10)
    plan = (score + column).softmax(-1)
    assert torch.allclose(plan.sum(0), torch.full((5,), 8.0, dtype=torch.float64), atol=1e-6)


def test_steps_end_at_the_tolerance_or_the_limit():
    """Each step by hand on [[4, 1], [1, 1]]: rows 1/5 and 1/2, so columns 1 / (4/5 + 1/2) and 1 / (1/5 + 1/2)."""
    score = torch.tensor([[4.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
    assert torch.allclose(column_potentials(score, 1).exp(), torch.tensor([1 / 1.3, 1 / 0.7], dtype=torch.float64))
    assert torch.equal(column_potentials(score, 50, 10.0), column_potentials(score, 2)), "the second step is the first compared"
    limit = column_potentials(score, 100)
    exact = column_potentials(score, 1000, 1e-14)
    assert not torch.equal(limit, exact)
    assert torch.allclose(limit - limit[0], exact - exact[0], atol=1e-3)


def test_training_balances_and_evaluation_does_not():
    """exp(l) has cross ratio 4, so the balanced plan has its diagonal above 1/2, though both tokens prefer expert 0."""
    router = build_router("sinkhorn", d_model=2, num_experts=2)
    with torch.no_grad():
        router.weight.copy_(torch.eye(2))
    x = torch.tensor([[[math.log(8.0), 0.0]], [[math.log(2.0), 0.0]]])
    plan = router(RouterInput(x)).plan
    assert plan.expert.flatten().tolist() == [0, 1]
    assert torch.allclose(plan.weight.flatten(), torch.tensor([8 / 9, 0.5])), "sigmoid of log 8 and of 0"
    plan = router.eval()(RouterInput(x)).plan
    assert plan.expert.flatten().tolist() == [0, 0]
    assert torch.allclose(plan.weight.flatten(), torch.tensor([8 / 9, 2 / 3]))
    assert router.per_token


def test_temperature_divides_the_scores():
    """At tau = 1 the choices differ from those at tau = 100 where tokens weigh many small preferences."""
    x = torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(0)) * 3
    chosen = []
    for tau in (1.0, 5.0):
        router = build_router("sinkhorn", d_model=4, num_experts=4, tau=tau)
        with torch.no_grad():
            router.weight.copy_(torch.eye(4) + 0.5)
        score = x[0] @ router.weight.t() / tau
        expected = (score + column_potentials(score)).argmax(-1)
        chosen.append(router(RouterInput(x)).plan.expert.flatten())
        assert torch.equal(chosen[-1], expected)
    assert not torch.equal(*chosen)


def test_two_choices_weigh_by_the_plain_softmax(data):
    router = build_router("sinkhorn", d_model=8, num_experts=4, top_k=2)
    x, _ = data(2, 6)
    plan = router(RouterInput(x)).plan
    probs = (x.flatten(0, 1) @ router.weight.t()).softmax(-1)
    assert torch.allclose(plan.weight, probs.gather(1, plan.expert))
    assert (plan.weight.sum(-1) < 1).all()


def test_skewed_scores_are_spread(data):
    """All tokens lean to one expert, which would take all 240; each should get about 60."""
    router = build_router("sinkhorn", d_model=8, num_experts=4)
    with torch.no_grad():
        router.weight.copy_(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)))
        router.weight[0, 0] = 5.0
    x, _ = data(10, 24)
    x[..., 0] = 3.0
    assert (router.eval()(RouterInput(x)).plan.expert == 0).float().mean() > 0.95
    load = router.train()(RouterInput(x)).plan.expert.flatten().bincount(minlength=4)
    assert load.min() > 40
    assert load.max() < 80


def test_padding_has_no_part_in_the_plan(data):
    router = build_router("sinkhorn", d_model=8, num_experts=4)
    x, _ = data(1, 10)
    alone = router(RouterInput(x[:, :6])).plan.expert
    mask = (torch.arange(10) < 6).unsqueeze(0)
    x[:, 6:] = 50.0
    assert torch.equal(router(RouterInput(x, mask=mask)).plan.expert[:6], alone)
    assert torch.isfinite(router(RouterInput(x, mask=torch.zeros_like(mask))).plan.weight).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0; it must be between 1 and the number of experts"),
        ({"tau": 0.0}, "tau is 0.0; it must be above 0"),
        ({"iterations": 0}, "iterations is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        build_router("sinkhorn", d_model=2, num_experts=4, **options)
