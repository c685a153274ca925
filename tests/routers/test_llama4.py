"""Llama 4: one choice, and a sigmoid that scales what the expert sees."""

import pytest
import torch
from torch.nn import functional as F

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router


def test_choice_and_weight_by_hand():
    router = build_router("llama4", d_model=2, num_experts=3)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]]))
    # logits [1, 0, -1], [0, 2, -1], [-3, 0, 3]
    plan = router(RouterInput(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]]))).plan
    assert plan.expert.tolist() == [[0], [1], [2]]
    assert plan.weight.squeeze(1).tolist() == pytest.approx([0.731059, 0.880797, 0.952574], abs=1e-6)
    assert plan.weight_on == "input"


def test_the_expert_sees_the_scaled_input(make_layer, data):
    layer = make_layer("llama4")
    x, _ = data(1, 6)
    out, routing = layer(x)
    on_output = 0
    for token, expert in enumerate(routing.plan.expert.squeeze(1).tolist()):
        weight, up, down = routing.plan.weight[token], layer.experts.up[expert], layer.experts.down[expert]
        assert torch.allclose(out[0, token], F.gelu((weight * x[0, token]) @ up) @ down, atol=1e-5)
        on_output += torch.allclose(out[0, token], weight * (F.gelu(x[0, token] @ up) @ down), atol=1e-4)
    assert on_output < 6, "scaling the output must be told apart"
