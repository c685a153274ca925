"""On a CUDA device: a mixture layer's forward and backward pass, and its telemetry, never wait for the host."""

import inspect

import pytest
import torch

from routelab.core.initialisation import initialise
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.experts.zero_compute import ZeroCompute
from routelab.routers.build import build_router
from routelab.routers.router_registry import ROUTERS
from routelab.training.routing_metrics import Tally

pytestmark = pytest.mark.gpu


def layer(name, device, **options):
    offered = {"positions": 32, "vocab_size": 256}
    wanted = {key: value for key, value in offered.items() if key in inspect.signature(ROUTERS.get(name)).parameters}
    router = build_router(name, d_model=64, num_experts=8, **wanted)
    made = MixtureLayer(router, ExpertBank("swiglu", num_experts=8, d_model=64, d_hidden=128), **options)
    initialise(made, 0)
    if hasattr(router, "calibrate"):
        router.calibrate()
    return made.to(device)


# The assignment of base runs on the host.
@pytest.mark.parametrize("name", [name for name in ROUTERS.names() if name != "base"])
@pytest.mark.parametrize("capacity", ["default", 1.0])
def test_nothing_waits_for_the_host(name, capacity, device, without_waiting):
    made = layer(name, device, capacity_factor=capacity)
    x = torch.randn(4, 32, 64, device=device)
    ids = torch.randint(0, 256, (4, 32), device=device)
    mask = torch.ones(4, 32, dtype=torch.bool, device=device)

    def step():
        with torch.autocast(device.type, torch.bfloat16):
            out, routing = made(x, ids, mask)
        Tally().add([routing], 4, 32, mask)
        (out.float().square().mean() + sum(routing.losses.values())).backward()

    step()
    with without_waiting():
        step()


@pytest.mark.parametrize("kind", ["linear", "lora"])
@pytest.mark.parametrize("capacity", [None, 1.0])
def test_nothing_waits_with_zero_compute_experts_in_a_latent_space(kind, capacity, device, without_waiting):
    """The parts of a plan, unequal capacities, constants, updates of a shared feed-forward: all stay on the device."""
    router = build_router("moe_plus_plus", d_model=64, num_experts=12, zero_compute=4)
    bank = ExpertBank(kind, num_experts=8, d_model=32, d_hidden=None if kind == "linear" else 128, bias=True)
    beside = ZeroCompute(64, ["zero", "copy", "constant", "constant"])
    made = MixtureLayer(router, bank, zero_compute=beside, latent_dim=32, capacity_factor=capacity)
    initialise(made, 0)
    made.to(device)
    x, mask = torch.randn(4, 32, 64, device=device), torch.ones(4, 32, dtype=torch.bool, device=device)

    def step():
        with torch.autocast(device.type, torch.bfloat16):
            out, routing = made(x, mask=mask)
        (out.float().square().mean() + sum(routing.losses.values())).backward()
        assert all(parameter.grad is not None for parameter in made.parameters())

    step()
    with without_waiting():
        step()
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters())
