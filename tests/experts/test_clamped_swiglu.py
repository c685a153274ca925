"""The expert of gpt-oss: a swish and its partner, both clamped, the partner raised by one."""

import pytest
import torch
from torch.nn import functional as F

from experts.bank import ExpertBank
from experts.kinds import KINDS, Kind
from experts.mixture import MixtureLayer
from routers.registry import build_router


def test_hidden_by_hand():
    """g / (1 + exp(-1.702 g)) * (u + 1), after g <= 7 and -7 <= u <= 7."""
    kind = KINDS.get("clamped_swiglu")
    gate = torch.tensor([1.0, 1.0, 50.0, -50.0, 0.0, -1.0])
    up = torch.tensor([0.0, -1.0, 50.0, 3.0, 3.0, -50.0])
    # sigmoid(1.702) = 0.845796; sigmoid(11.914) = 0.99999331; the gate has no lower bound, but its swish has.
    expected = torch.tensor([0.845796, 0.0, 7 * 0.99999331 * 8, 0.0, 0.0, -(1 - 0.845796) * -6])
    assert torch.allclose(kind.hidden(up, gate), expected, atol=1e-4)


def test_equals_the_block_of_transformers():
    """With weights large enough that both clamps are at work."""
    modeling = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    config = modeling.GptOssConfig(hidden_size=16, intermediate_size=24, num_local_experts=8, num_experts_per_tok=4)
    torch.manual_seed(0)
    block = modeling.GptOssMLP(config).float()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.normal_(std=1.5 if "gate_up_proj" in name else 0.05)
    router = build_router("gpt_oss", d_model=16, num_experts=8)
    bank = ExpertBank("clamped_swiglu", num_experts=8, d_model=16, d_hidden=24, bias=True)
    theirs = block.experts
    with torch.no_grad():
        router.load_state_dict(block.router.state_dict())
        # Gate and up alternate in their columns.
        bank.gate.copy_(theirs.gate_up_proj[..., ::2])
        bank.up.copy_(theirs.gate_up_proj[..., 1::2])
        bank.gate_bias.copy_(theirs.gate_up_proj_bias[..., ::2])
        bank.up_bias.copy_(theirs.gate_up_proj_bias[..., 1::2])
        bank.down.copy_(theirs.down_proj)
        bank.down_bias.copy_(theirs.down_proj_bias)
    x = torch.randn(3, 7, 16)
    assert (torch.einsum("gsd,edh->gseh", x, bank.gate) > 7).any()
    assert (torch.einsum("gsd,edh->gseh", x, bank.up).abs() > 7).any()
    out, _ = MixtureLayer(router, bank)(x)
    torch.testing.assert_close(out, block(x)[0], atol=1e-5, rtol=1e-5)


def test_the_fused_kernel_leaves_lifted_kinds_alone():
    """It knows silu, but would forget what is done to the other projection."""
    bank = ExpertBank(num_experts=2, d_model=8, d_hidden=8)
    bank.kind = Kind(F.silu, gated=True)
    assert bank.can_fuse(torch.device("cpu"), torch.float32)
    bank.kind = Kind(F.silu, gated=True, lift=torch.tanh)
    assert not bank.can_fuse(torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="a kind with `lift` must be gated"):
        Kind(F.silu, lift=torch.tanh)
