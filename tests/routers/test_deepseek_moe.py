"""DeepSeekMoE: raw probabilities; its shared experts belong to the arm."""

import pytest
import torch

from routelab.core.errors import UsageError
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router


def test_weights_are_raw_probabilities():
    """Logits (ln 1, ln 2, ln 5): probabilities 1/8, 2/8, 5/8."""
    router = build_router("deepseek_moe", d_model=1, num_experts=3)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0], [2.0], [5.0]]).log())
    routing = router(RouterInput(torch.ones(1, 1, 1)))
    assert routing.plan.expert.tolist() == [[2, 1]]
    assert routing.plan.weight[0].tolist() == pytest.approx([0.625, 0.25])
    # f = (0, 1/2, 1/2): 3 * (1/8 + 5/16)
    assert routing.losses["balance"].item() == pytest.approx(1.3125)


def test_one_choice_still_has_a_gradient(data):
    router = build_router("deepseek_moe", d_model=8, num_experts=4, top_k=1)
    router(RouterInput(data(2, 6)[0])).plan.weight.sum().backward()
    assert router.weight.grad.abs().max() > 0


def test_renormalising_is_no_option():
    with pytest.raises(UsageError, match="unknown option of router 'deepseek_moe' 'renormalize'"):
        build_router("deepseek_moe", d_model=8, num_experts=4, renormalize=True)
