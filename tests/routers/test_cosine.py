"""Cosine router: angles over a learned temperature, in few dimensions."""

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.cosine import cosine


def test_cosines_by_hand():
    token = torch.tensor([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0]])
    expert = torch.tensor([[5.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([[0.6, 1.4 / 2**0.5], [0.0, -1 / 2**0.5], [0.0, 0.0]])
    assert torch.allclose(cosine(token, expert), expected, atol=1e-6)


def by_hand():
    """P keeps the two features; M at 0, 90 and 180 degrees."""
    router = build_router("cosine", d_model=2, num_experts=3)
    with torch.no_grad():
        router.project.copy_(torch.eye(8)[:, :2])
        router.centroids.copy_(torch.eye(8)[[0, 1, 0]] * torch.tensor([[2.0], [7.0], [-1.0]]))
    return router


def test_choices_and_weights_by_hand():
    routing = by_hand()(RouterInput(torch.tensor([[[3.0, 4.0], [-8.0, 6.0]]])))
    assert torch.allclose(routing.logits, torch.tensor([[0.6, 0.8, -0.6], [-0.8, 0.6, 0.8]]) / 0.07, atol=1e-4)
    assert routing.plan.expert.tolist() == [[1, 0], [2, 1]]
    # 1 / (1 + exp(-0.2 / 0.07)): one softmax, not two.
    assert torch.allclose(routing.plan.weight, torch.tensor([[0.945685, 0.054315]] * 2), atol=1e-5)


def test_length_does_not_matter(make_router, data):
    router, (x, _) = make_router("cosine"), data(2, 5)
    plain, long = router(RouterInput(x)).plan, router(RouterInput(100 * x)).plan
    assert torch.equal(plain.expert, long.expert)
    assert torch.allclose(plain.weight, long.weight, atol=1e-4)


def test_temperature_is_bounded_and_comes_back():
    router = by_hand()
    with torch.no_grad():
        router.temperature.fill_(-0.5)
    inputs = RouterInput(torch.tensor([[[3.0, 4.0]]]))
    assert torch.allclose(router(inputs).logits, torch.tensor([[60.0, 80.0, -60.0]]), atol=1e-3)
    router.update()
    assert router.temperature.item() == pytest.approx(0.01)
    router(inputs).plan.weight[0, 0].backward()
    assert router.temperature.grad.item() != 0


@pytest.mark.parametrize(("d_model", "experts", "dimensions"), [(64, 4, 8), (64, 33, 16), (16, 64, 16), (4, 64, 8)])
def test_routing_dimensions(d_model, experts, dimensions):
    assert build_router("cosine", d_model=d_model, num_experts=experts).project.shape == (dimensions, d_model)


def test_refuses_a_gate_without_gradient():
    with pytest.raises(ValueError, match="the router no gradient; it must be at least 2"):
        build_router("cosine", d_model=8, num_experts=4, top_k=1)
    build_router("cosine", d_model=8, num_experts=1, top_k=1)
