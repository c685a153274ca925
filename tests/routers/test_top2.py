"""Top-2: the pair, the random second choice, and the leak of first choices over second ones."""

import pytest
import torch

from routelab.routers.base import RouterInput


def weight_of(router, value):
    with torch.no_grad():
        router.weight.copy_(value)


def test_top2_renormalises_over_the_pair(make_router, data):
    router = make_router("top2").eval()
    x, _ = data(2, 5)
    plan = router(RouterInput(x)).plan
    top = (x.flatten(0, 1) @ router.weight.t()).softmax(-1).topk(2, dim=-1)
    assert plan.keep is None
    assert torch.equal(plan.expert, top.indices)
    assert torch.allclose(plan.weight, top.values / top.values.sum(-1, keepdim=True))


def test_top2_balance_counts_first_choices_only(make_router):
    """Eight tokens choose 0 first and 1 second: with both counted the loss would be halved towards 1."""
    router = make_router("top2", num_experts=2, d_model=2)
    weight_of(router, torch.tensor([[50.0, 0.0], [0.0, 0.0]]))
    x = torch.ones(1, 8, 2)
    assert router(RouterInput(x)).losses["balance"].item() == pytest.approx(2.0)


def test_top2_second_policy(make_router):
    """Random: the second choice lives with probability min(1, 2 g2), never the first; its weight is left as it was."""
    router = make_router("top2", num_experts=2, d_model=2)
    share = 0.1
    weight_of(router, torch.tensor([[torch.logit(torch.tensor(1 - share)).item(), 0.0], [0.0, 0.0]]))
    x = torch.ones(1, 4000, 2)
    torch.manual_seed(0)
    plan = router(RouterInput(x)).plan
    assert plan.keep[:, 0].all()
    assert plan.keep[:, 1].float().mean().item() == pytest.approx(2 * share, abs=0.03)
    assert torch.allclose(plan.weight[:, 1], torch.tensor(share))
    assert router.eval()(RouterInput(x)).plan.keep is None
    always = make_router("top2", num_experts=2, d_model=2, second_policy="all")
    assert always(RouterInput(x)).plan.keep is None


def test_top2_at_the_usual_capacity_leaks(make_layer, data):
    """GShard's order with capacity factor 1.25, once the experts are not equally wanted."""
    leaks = 0
    for seed in range(20):
        layer = make_layer("top2", seed=seed, quiet=True, capacity_factor=1.25)
        # Real tokens share a mean, so some experts are wanted more than others.
        x, ids = data(1, 64, seed)
        x = x + 1
        before = layer(x, ids)[0]
        x[:, 32:] = data(1, 64, seed + 1000)[0][:, 32:] - 1
        leaks += not torch.allclose(before[:, :32], layer(x, ids)[0][:, :32], atol=1e-5)
    assert leaks >= 10
