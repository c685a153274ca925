"""Soft mixtures: the published algorithm by einsum, padding, and the number of slots."""

import torch
from torch.nn import functional as F

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.plans import Slots

D, E = 8, 4  # the sizes of the conformance suite


def test_soft_by_hand(make_layer, data):
    """Puigcerver's algorithm 1 with einsum, experts and all."""
    layer = make_layer("soft")
    with torch.no_grad():
        layer.router.scale.fill_(3.0)
    x, _ = data(2, 5)
    phi = layer.router.phi.view(D, E, 2)
    logits = 3.0 * torch.einsum("gsd,dep->gsep", x / x.norm(dim=-1, keepdim=True), phi / phi.norm(dim=0, keepdim=True))
    dispatch = logits.exp() / logits.exp().sum(1, keepdim=True)
    combine = logits.exp() / logits.exp().sum((2, 3), keepdim=True)
    slots = torch.einsum("gsd,gsep->gepd", x, dispatch)
    done = torch.einsum("geph,ehd->gepd", F.gelu(torch.einsum("gepd,edh->geph", slots, layer.experts.up)), layer.experts.down)
    expected = torch.einsum("gepd,gsep->gsd", done, combine)
    out, routing = layer(x)
    assert isinstance(routing.plan, Slots)
    assert torch.allclose(routing.plan.dispatch, dispatch, atol=1e-6)
    assert torch.allclose(routing.plan.combine, combine, atol=1e-6)
    assert torch.allclose(out, expected, atol=1e-5)


def test_soft_weights_of_padding_are_zero(make_router, data):
    """In the plan itself, before the layer takes padding out; real tokens share what a slot sees among themselves."""
    x, _ = data(3, 5)
    mask = torch.tensor([[True] * 5, [True, True, False, False, True], [False] * 5])
    plan = make_router("soft")(RouterInput(x, mask=mask)).plan
    for weight in (plan.dispatch, plan.combine):
        assert weight[~mask].abs().max() == 0
    assert torch.allclose(plan.dispatch[:2].sum(1), torch.ones(2, E, 2))
    assert torch.allclose(plan.combine.sum((2, 3)), mask.float())


def test_soft_slots_follow_the_positions():
    assert build_router("soft", d_model=D, num_experts=4, positions=16).slots_per_expert == 4
    assert build_router("soft", d_model=D, num_experts=16, positions=4).slots_per_expert == 1
    assert build_router("soft", d_model=D, num_experts=4).slots_per_expert == 1


def test_soft_survives_a_zero_token_and_a_group_of_padding(make_layer, data):
    layer = make_layer("soft")
    x, _ = data(2, 4)
    x[0, 1] = 0
    mask = torch.tensor([[True] * 4, [False] * 4])
    out, _ = layer(x.requires_grad_(), mask=mask)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    assert out[1].abs().max() == 0
