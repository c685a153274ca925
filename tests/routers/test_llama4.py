"""Llama 4: one choice, and a sigmoid that scales what the expert sees."""

import pytest
import torch
from torch.nn import functional as F

from experts.bank import ExpertBank
from experts.kinds import FeedForward
from experts.mixture import MixtureLayer
from routers.contract import RouterInput
from routers.registry import build_router


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


def test_equals_the_block_of_transformers():
    modeling = pytest.importorskip("transformers.models.llama4.modeling_llama4")
    config = modeling.Llama4TextConfig(
        hidden_size=16, intermediate_size=24, num_local_experts=4, num_experts_per_tok=1, hidden_act="silu"
    )
    torch.manual_seed(0)
    block = modeling.Llama4TextMoe(config).float()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    router = build_router("llama4", d_model=16, num_experts=4)
    bank = ExpertBank("swiglu", num_experts=4, d_model=16, d_hidden=24)
    shared = FeedForward("swiglu", 16, 24)
    with torch.no_grad():
        router.weight.copy_(block.router.weight)
        gate, up = block.experts.gate_up_proj.chunk(2, dim=-1)
        for own, theirs in ((bank.gate, gate), (bank.up, up), (bank.down, block.experts.down_proj)):
            own.copy_(theirs)
        for name in ("gate", "up", "down"):
            getattr(shared, name).copy_(getattr(block.shared_expert, f"{name}_proj").weight.t())
    x = torch.randn(3, 7, 16)
    out, routing = MixtureLayer(router, bank, shared)(x)
    assert len(routing.plan.expert.unique()) > 1
    assert torch.allclose(out.flatten(0, 1), block(x)[0], atol=1e-5)
