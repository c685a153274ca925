"""Layers whose shapes do not hang on the routing compile as one graph, to the same values."""

import pytest
import torch

from routelab.core.initialisation import initialise
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.experts.zero_compute import ZeroCompute
from routelab.routers.build import build_router

STATIC = [
    ("soft", {"positions": 16}, {}),
    ("expert_choice", {}, {}),
    ("topk", {"top_k": 2}, {"capacity_factor": 1.0}),
    ("topk", {"top_k": 2}, {"capacity_factor": 0.75, "capacity_group": "sequence"}),
    ("top2", {"second_policy": "all"}, {}),
    ("switch", {"jitter": 0.0}, {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "settings"), STATIC)
def test_one_graph(name, options, settings):
    """fullgraph=True raises at the first graph break."""
    layer = MixtureLayer(
        build_router(name, d_model=16, num_experts=4, **options),
        ExpertBank("swiglu", num_experts=4, d_model=16, d_hidden=32),
        **settings,
    )
    initialise(layer, 0)
    found = []
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for call in (layer, compiled):
        layer.zero_grad()
        x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out, routing = call(x)
        (out.square().mean() + sum(routing.losses.values())).backward()
        found.append([out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())])
        assert int(routing.work.kept) > 0
    for eager, graph in zip(*found, strict=True):
        torch.testing.assert_close(graph, eager, atol=1e-5, rtol=1e-4)
    # Another routing of the same shape needs no second graph.
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(torch.randn(2, 16, 16).requires_grad_())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gelu", "lora"])
def test_one_graph_with_zero_compute_experts_in_a_latent_space(kind):
    layer = MixtureLayer(
        build_router("moe_plus_plus", d_model=16, num_experts=7, zero_compute=3),
        ExpertBank(kind, num_experts=4, d_model=8, d_hidden=32),
        latent_dim=8,
        zero_compute=ZeroCompute(16, ["zero", "copy", "constant"]),
    )
    initialise(layer, 0)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    (expected, routing), (out, _) = layer(x), compiled(x)
    assert 0 < int(routing.work.kept) < 64
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    out.square().mean().backward()
    assert layer.latent.down.grad.any()
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(torch.randn(2, 16, 16))


@pytest.mark.slow
def test_without_capacity_the_rest_compiles():
    """Rows that hang on the routing run outside of the graphs; what is around them compiles, and training goes on."""
    layer = MixtureLayer(
        build_router("topk", d_model=16, num_experts=4, top_k=2), ExpertBank("swiglu", num_experts=4, d_model=16, d_hidden=32)
    )
    initialise(layer, 0)
    compiled = torch.compile(layer, backend="aot_eager")
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    expected, _ = layer(x)
    out, _ = compiled(x)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    out.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(compiled.eval()(x)[0], layer.eval()(x)[0], atol=1e-5, rtol=1e-4)
