"""gpt-oss: a bias that takes part in choice and weight."""

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router


def test_choices_and_weights_by_hand():
    router = build_router("gpt_oss", d_model=1, num_experts=3, top_k=2)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0], [0.0], [-1.0]]))
        router.bias.copy_(torch.tensor([0.0, 0.5, 3.0]))
    # logits [1, .5, 2] and [-2, .5, 5]; without the bias expert 2 would be the last choice of the first token.
    routing = router(RouterInput(torch.tensor([[[1.0], [-2.0]]])))
    assert routing.logits.tolist() == [[1.0, 0.5, 2.0], [-2.0, 0.5, 5.0]]
    assert routing.plan.expert.tolist() == [[2, 0], [2, 1]]
    # 1 / (1 + e^-1), 1 / (1 + e^-4.5)
    expected = torch.tensor([[0.731059, 0.268941], [0.989013, 0.010987]])
    assert torch.allclose(routing.plan.weight, expected, atol=1e-6)


def test_four_choices_as_far_as_there_are_experts():
    assert build_router("gpt_oss", d_model=4, num_experts=32).top_k == 4
    assert build_router("gpt_oss", d_model=4, num_experts=3).top_k == 3
    with pytest.raises(ValueError, match=r"top_k is 5; it must be between 1 and the number of experts \(4\)"):
        build_router("gpt_oss", d_model=4, num_experts=4, top_k=5)
    with pytest.raises(ValueError, match="the router no gradient; it must be at least 2"):
        build_router("gpt_oss", d_model=4, num_experts=4, top_k=1)
