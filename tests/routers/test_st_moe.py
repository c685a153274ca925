"""ST-MoE is top2 with a z-loss and less room."""

import math

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.losses import z_loss


def pair(seed=0, **options):
    """An st_moe and a top2 router of the same weights."""
    routers = [build_router(name, d_model=8, num_experts=4, **options) for name in ("st_moe", "top2")]
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    for router in routers:
        with torch.no_grad():
            router.weight.copy_(weight)
    return routers


@pytest.mark.parametrize("training", [True, False])
def test_plan_is_that_of_top2(training, data):
    x, _ = data(2, 6)
    routings = []
    for router in pair():
        torch.manual_seed(3)
        routings.append(router.train(training)(RouterInput(x)))
    mine, other = routings
    assert torch.equal(mine.plan.expert, other.plan.expert)
    assert torch.equal(mine.plan.weight, other.plan.weight)
    assert (mine.plan.keep is None) == (other.plan.keep is None)
    if training:
        assert torch.equal(mine.plan.keep, other.plan.keep)
    assert torch.equal(mine.losses["balance"], other.losses["balance"])


def test_z_loss_by_hand():
    """Logits (0, 0, 0, 0) and (ln 2, 0, 0, 0), where logsumexp is ln 4 and ln 5; the third token is padding."""
    router, _ = pair()
    with torch.no_grad():
        router.weight.zero_()[0, 0] = math.log(2)
    x = torch.zeros(1, 3, 8)
    x[0, 1:, 0] = torch.tensor([1.0, 50.0])
    losses = router(RouterInput(x, mask=torch.tensor([[True, True, False]]))).losses
    assert losses["z"].item() == pytest.approx((math.log(4) ** 2 + math.log(5) ** 2) / 2)


def test_z_loss_is_of_the_logits_and_moves_them_towards_zero(data):
    router, _ = pair()
    x, _ = data(2, 6)
    loss = router(RouterInput(x)).losses["z"]
    assert loss.item() == pytest.approx(z_loss(x.flatten(0, 1) @ router.weight.t()).item())
    loss.backward()
    with torch.no_grad():
        router.weight -= 0.01 * router.weight.grad
    assert router(RouterInput(x)).losses["z"] < loss


def test_defaults_of_the_paper(make_layer):
    layer = make_layer("st_moe")
    assert (layer.capacity_factor, layer.eval_capacity_factor, layer.priority) == (1.25, None, "choice")
    assert layer.router.loss_weights == {"balance": 0.01, "z": 0.001}
