"""No forward or backward pass on a device asks for a value: the meta device has none, and raises where one is read.

Routers and layers take the branches of a GPU there. On a GPU itself tests/gpu says the same.
"""

import contextlib

import pytest
import torch

from routelab.conformance.cases import cases
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.experts.zero_compute import ZeroCompute
from routelab.routers.base import RouterInput
from routelab.routers.plans import TopK

# The assignment of base runs on the host.
CASES = [case for case, (name, _) in cases().items() if name != "base"]
G, S, D = 3, 8, 16
# On a device all of its 100 steps are taken, and one is like another.
FEW = {"sinkhorn": {"iterations": 5}}


@pytest.fixture
def new_router(make_router):
    """Return a function that builds the router of a case, with few of the steps that it repeats."""
    return lambda case: make_router(case, d_model=D, **FEW.get(cases()[case][0], {}))


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Which the meta device does not know."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)


def step(router, dtype, masked, **options):
    """One step in training and one evaluation of a layer on the meta device."""
    free = router.zero_compute or 0
    bank = ExpertBank("swiglu", num_experts=router.num_experts - free, d_model=D, d_hidden=32)
    beside = ZeroCompute(D, ["zero", "constant"][:free]) if free else None
    layer = MixtureLayer(router, bank, zero_compute=beside, **options).to("meta", dtype)
    x = torch.empty(G, S, D, device="meta", dtype=dtype, requires_grad=True)
    ids = torch.zeros(G, S, device="meta", dtype=torch.int64)
    mask = torch.ones(G, S, device="meta", dtype=torch.bool) if masked else None
    out, routing = layer(x, ids, mask)
    (out.float().square().mean() + sum(routing.losses.values())).backward()
    router.update()
    layer.eval()(x, ids, mask)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_in_bfloat16(case, masked, new_router):
    for capacity in (None, 1.0):
        step(new_router(case), torch.bfloat16, masked, capacity_factor=capacity)


@pytest.mark.parametrize("group", ["batch", "sequence"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_in_float32_under_capacity(case, group, new_router, data):
    router = new_router(case)
    if not isinstance(router(RouterInput(*data(G, S, width=D))).plan, TopK):
        pytest.skip("capacity bounds the rows of an expert only where every token has as many choices")
    step(router, torch.float32, True, capacity_factor=1.0, eval_capacity_factor=2.0, capacity_group=group)
