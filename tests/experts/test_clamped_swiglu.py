"""The expert of gpt-oss: a swish and its partner, both clamped, the partner raised by one."""

import pytest
import torch
from torch.nn import functional as F

from routelab.experts.feed_forward import KINDS, Kind
from routelab.experts.grouped_experts import ExpertBank


def test_hidden_by_hand():
    """g / (1 + exp(-1.702 g)) * (u + 1), after g <= 7 and -7 <= u <= 7."""
    kind = KINDS.get("clamped_swiglu")
    gate = torch.tensor([1.0, 1.0, 50.0, -50.0, 0.0, -1.0])
    up = torch.tensor([0.0, -1.0, 50.0, 3.0, 3.0, -50.0])
    # sigmoid(1.702) = 0.845796; sigmoid(11.914) = 0.99999331; the gate has no lower bound, but its swish has.
    expected = torch.tensor([0.845796, 0.0, 7 * 0.99999331 * 8, 0.0, 0.0, -(1 - 0.845796) * -6])
    assert torch.allclose(kind.hidden(up, gate), expected, atol=1e-4)


def test_the_fused_kernel_leaves_lifted_kinds_alone():
    """It knows silu, but would forget what is done to the other projection."""
    bank = ExpertBank(num_experts=2, d_model=8, d_hidden=8)
    bank.kind = Kind(F.silu, gated=True)
    assert bank.can_fuse(torch.device("cpu"), torch.float32)
    bank.kind = Kind(F.silu, gated=True, lift=torch.tanh)
    assert not bank.can_fuse(torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="a kind with `lift` must be gated"):
        Kind(F.silu, lift=torch.tanh)
