"""Top-k: which weights a choice has."""

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router

D, E = 8, 4  # the sizes of the conformance suite


def test_topk_is_softmax_over_the_selected(make_router, data):
    router = make_router("topk", top_k=3)
    x, _ = data(2, 5)
    plan = router(RouterInput(x)).plan
    logits = x.flatten(0, 1) @ router.weight.t()
    top = logits.topk(3, dim=-1)
    assert torch.equal(plan.expert, top.indices)
    assert torch.allclose(plan.weight, top.values.softmax(-1), atol=1e-6)


def test_topk_raw_keeps_probabilities(make_router, data):
    router = make_router("topk", renormalize=False)
    x, _ = data(2, 5)
    plan = router(RouterInput(x)).plan
    probs = (x.flatten(0, 1) @ router.weight.t()).softmax(-1)
    assert torch.allclose(plan.weight, probs.gather(1, plan.expert))
    assert (plan.weight.sum(1) < 1).all()


def test_topk_refuses_a_gate_without_gradient():
    with pytest.raises(ValueError, match="no gradient; set renormalize=False"):
        build_router("topk", d_model=D, num_experts=E, top_k=1)
    build_router("topk", d_model=D, num_experts=1, top_k=1)
