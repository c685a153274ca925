"""A layer whose experts work in fewer features: the sum written out, what it costs, what it refuses."""

import pytest
import torch

from routelab.core.initialisation import initialise
from routelab.experts.feed_forward import FeedForward
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.experts.zero_compute import ZeroCompute
from routelab.routers.build import build_router

D, L, E, H = 8, 3, 4, 12


def make_layer(name="topk", kind="gelu", **options):
    router = build_router(name, d_model=D, num_experts=E)
    hidden = None if kind == "linear" else H
    layer = MixtureLayer(router, ExpertBank(kind, num_experts=E, d_model=L, d_hidden=hidden), latent_dim=L, **options)
    initialise(layer, 0)
    return layer


def test_projections_lie_around_the_experts_alone():
    """Router, shared and zero-compute experts see all features (Megatron-LM's order: route, project, dispatch, sum, project)."""
    router = build_router("topk", d_model=D, num_experts=E + 1)
    shared = FeedForward("gelu", D, H)
    layer = MixtureLayer(
        router,
        ExpertBank("gelu", num_experts=E, d_model=L, d_hidden=H),
        shared,
        latent_dim=L,
        zero_compute=ZeroCompute(D, ["copy"]),
    )
    initialise(layer, 0)
    x = torch.randn(2, 6, D)
    out, routing = layer(x)
    rows, plan = x.flatten(0, 1), routing.plan
    narrow = rows @ layer.latent.down
    for t in range(12):
        summed, copied = torch.zeros(L), torch.zeros(D)
        for expert, weight in zip(plan.expert[t].tolist(), plan.weight[t], strict=True):
            if expert == E:
                copied = copied + weight * rows[t]
            else:
                bank = layer.experts
                summed = summed + weight * (torch.nn.functional.gelu(narrow[t] @ bank.up[expert]) @ bank.down[expert])
        expected = summed @ layer.latent.up + copied + shared(rows[t])
        torch.testing.assert_close(out.flatten(0, 1)[t], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["topk", "switch", "expert_choice", "soft", "dense_gate", "relu", "llama4"])
@pytest.mark.parametrize("kind", ["gelu", "linear", "lora"])
def test_every_plan_and_kind_learns_through_it(name, kind):
    layer = make_layer(name, kind)
    with torch.no_grad():
        for parameter in layer.router.parameters():
            if parameter.ndim == 2:
                parameter.mul_(50)
        for parameter in layer.experts.parameters():  # a low-rank update starts at 0, and would give its other half nothing
            parameter.add_(0.1 * torch.randn(parameter.shape))
    out, _ = layer(torch.randn(3, 8, D))
    assert out.shape == (3, 8, D)
    out.square().sum().backward()
    for part, parameter in layer.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.abs().max() > 0, part


def test_both_projections_are_charged():
    """For every token, whatever it chose; the slots of soft routing are made of narrow tokens."""
    layer = make_layer()
    without = MixtureLayer(layer.router, ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=H))
    difference = layer.fixed_cost(2, 6).training - without.fixed_cost(2, 6).training
    assert difference == 3 * 2 * (2 * 12 * D * L)
    assert layer.nominal_cost(2, 6).forward == layer.fixed_cost(2, 6).forward + 24 * 2 * 2 * L * H
    soft, wide = (
        make_layer("soft"),
        MixtureLayer(build_router("soft", d_model=D, num_experts=E), ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=H)),
    )
    slots = int(soft.router.nominal_rows(1, 6))
    assert wide.fixed_cost(2, 6).forward - soft.fixed_cost(2, 6).forward == (
        2 * 2 * 2 * slots * 6 * (D - L) - 2 * (2 * 12 * D * L)
    )


def test_masked_tokens_stay_zero():
    mask = torch.tensor([[True] * 4 + [False] * 2])
    out, _ = make_layer()(torch.randn(1, 6, D), mask=mask)
    assert out[0, 4:].abs().max() == 0
    assert out[0, :4].abs().max() > 0


def test_bf16_autocast():
    layer, x = make_layer(), torch.randn(2, 6, D)
    full = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)[0]
    torch.testing.assert_close(low.float(), full, atol=0.05, rtol=0.05)
    assert not torch.equal(low.float(), full)


def test_initial_spread():
    """N(0, 1 / fan in), cut at two deviations (0.8796 of the deviation is left), as the feed-forwards."""
    layer = MixtureLayer(
        build_router("topk", d_model=256, num_experts=2),
        ExpertBank("gelu", num_experts=2, d_model=64, d_hidden=4),
        latent_dim=64,
    )
    initialise(layer, 0)
    assert layer.latent.down.std().item() == pytest.approx(0.8796 / 16, rel=0.03)
    assert layer.latent.up.std().item() == pytest.approx(0.8796 / 8, rel=0.03)


def test_what_does_not_fit_is_refused():
    router = build_router("topk", d_model=D, num_experts=E)
    with pytest.raises(ValueError, match="the latent space 3 features, the experts 8 and 4; they must be equal"):
        MixtureLayer(router, ExpertBank(num_experts=E, d_model=D, d_hidden=4), latent_dim=3)
    with pytest.raises(ValueError, match="latent_dim is 9; it must be at most the 8 features"):
        MixtureLayer(router, ExpertBank(num_experts=E, d_model=9, d_hidden=4), latent_dim=9)
