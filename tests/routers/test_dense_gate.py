"""Dense gate: all experts, weighted by the softmax."""

import pytest
import torch
from torch.nn import functional as F

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.plans import Blend


def test_weights_by_hand():
    router = build_router("dense_gate", d_model=1, num_experts=3)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[0.0], [0.693147], [1.609438]]))  # ln 1, ln 2, ln 5
    plan = router(RouterInput(torch.tensor([[[1.0], [0.0]]]))).plan
    assert isinstance(plan, Blend)
    assert torch.allclose(plan.weight, torch.tensor([[0.125, 0.25, 0.625], [1 / 3, 1 / 3, 1 / 3]]), atol=1e-6)


def test_output_is_the_blend_of_all_experts(make_layer, data):
    layer = make_layer("dense_gate")
    x, _ = data(2, 3)
    out, routing = layer(x)
    probs = (x @ layer.router.weight.t()).softmax(-1)
    expected = sum(
        probs[..., e : e + 1] * (F.gelu(x @ layer.experts.up[e]) @ layer.experts.down[e]) for e in range(len(layer.experts.up))
    )
    assert torch.allclose(out, expected, atol=1e-5)
    assert routing.work.executed == layer.router.nominal_rows(2, 3) == 2 * 3 * 4


def test_one_expert_is_the_dense_feed_forward(data):
    router = build_router("dense_gate", d_model=8, num_experts=1)
    assert router(RouterInput(data(2, 3)[0])).plan.weight.flatten().tolist() == pytest.approx([1.0] * 6)
