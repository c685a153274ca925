"""Switch: the raw probability, and jitter that only the router sees."""

import pytest
import torch
from torch.nn import functional as F

from routelab.core.initialisation import initialise
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router


def test_switch_weight_is_the_raw_probability(make_router, data):
    router = make_router("switch", jitter=0.0)
    x, _ = data(2, 5)
    plan = router(RouterInput(x)).plan
    probs = (x.flatten(0, 1) @ router.weight.t()).softmax(-1)
    assert torch.equal(plan.expert.squeeze(1), probs.argmax(-1))
    assert torch.allclose(plan.weight.squeeze(1), probs.amax(-1))
    assert plan.weight.max() < 1


def test_switch_jitter_touches_the_router_only(make_layer, data):
    """Experts see the clean x: with one fixed choice of weight, the output is weight * expert(x)."""
    layer = make_layer("switch", router_options={"jitter": 0.5}, capacity_factor=None)
    x, _ = data(1, 6)
    torch.manual_seed(0)
    out, routing = layer(x)
    probs = (x.flatten(0, 1) @ layer.router.weight.t()).softmax(-1)
    assert not torch.allclose(routing.probs, probs, atol=1e-3)
    for token, expert in enumerate(routing.plan.expert.squeeze(1).tolist()):
        hidden = F.gelu(x[0, token] @ layer.experts.up[expert])
        assert torch.allclose(out[0, token], routing.plan.weight[token] * (hidden @ layer.experts.down[expert]), atol=1e-5)


def test_init_scale_is_the_papers_formula():
    """Deviation sqrt(s / fan in); cutting a normal at two deviations leaves 0.8796 of it, and nothing beyond."""
    for scale, deviation in ((None, 0.02), (0.1, (0.1 / 400) ** 0.5), (1.0, 0.05)):
        router = build_router("switch", d_model=400, num_experts=100, init_scale=scale)
        initialise(router, 0)
        assert router.weight.std().item() == pytest.approx(0.8796 * deviation, rel=0.02)
        assert router.weight.abs().max() <= 2 * deviation * (1 + 1e-6)
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="init_scale is .*; it must be above 0"):
            build_router("switch", d_model=8, num_experts=4, init_scale=wrong)
