"""What the conformance suite does not say of routers: that noise is there in training, and what a router product costs."""

import pytest
import torch
from torch import nn

from routelab.core.initialisation import initialise
from routelab.routers.base import Router, Routing
from routelab.routers.build import build_router
from routelab.routers.plans import TopK
from routelab.routers.router_registry import ROUTERS
from routelab.routers.topk import TopKRouter

D, E = 8, 4


@pytest.mark.parametrize("case", ["switch", "top2", "st_moe", "noisy_topk"])
def test_training_noise(case, make_layer, data):
    layer = make_layer(case, router_options={"jitter": 0.3} if case == "switch" else None)
    x, ids = data(3, 8)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(layer(x, ids)[0])
    assert torch.equal(outs[0], outs[1])
    assert not torch.allclose(outs[0], outs[2])


@pytest.mark.parametrize(
    "case",
    [
        "switch",
        "top2",
        "topk",
        "expert_choice",
        "expert_choice_batch",
        "soft",
        "base",
        "sinkhorn",
        "llama4",
        "gpt_oss",
        "dense_gate",
    ],
)
def test_cost_of_the_router_product(case, make_router):
    """One (T, D) x (D, E) product forward, two backward: the weight's gradient and the input's."""
    router = make_router(case)
    columns = E * 2 if case == "soft" else E
    # The mean probability of the balance loss is a product with a vector of ones, forward and backward.
    balance = 2 * (2 * 12 * E) if router.loss_weights else 0
    assert router.cost(2, 6).training == 3 * 2 * 12 * D * columns + balance


def test_cost_is_the_same_wherever_it_is_asked_for():
    """Evaluation runs in inference mode, where a backward would silently count as 0."""
    router = TopKRouter(8, 4)
    expected = router.cost(2, 5)
    assert expected.backward > 0
    with torch.inference_mode():
        assert router.cost(2, 5) == expected


def test_a_router_that_follows_is_sized_with_the_logits_of_a_layer_before():
    """It has no say without them, and its product with them costs FLOPs."""

    class Following(Router):
        follows = True

        def __init__(self, d_model, num_experts):
            super().__init__(d_model, num_experts)
            self.weight = nn.Parameter(torch.ones(num_experts, num_experts))

        def forward(self, inputs):
            weight, expert = (inputs.before @ self.weight).softmax(-1).topk(1)
            return Routing(TopK(expert, weight, self.num_experts))

    router = Following(D, E)
    assert router.nominal_rows(2, 6) == 12
    assert router.cost(2, 6).forward == 2 * 12 * E * E
    assert router.cost(2, 6).backward == 2 * (2 * 12 * E * E)


def test_sizing_a_router_waits_for_no_other_process(monkeypatch):
    """Of two processes one may have an evaluation batch whose size the other has met already."""
    expected = {name: build_router(name, d_model=D, num_experts=E).cost(2, 5) for name in ROUTERS.names()}

    def never(*_, **__):
        raise AssertionError("it waits for the other process")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", never)
    assert {name: build_router(name, d_model=D, num_experts=E).cost(2, 5) for name in ROUTERS.names()} == expected


class WithALinearLayer(Router):
    def __init__(self, d_model, num_experts):
        super().__init__(d_model, num_experts)
        self.gate = nn.Linear(d_model, num_experts)

    def forward(self, inputs):
        weight, expert = self.gate(inputs.x_TD).softmax(-1).topk(1)
        return Routing(TopK(expert, weight, self.num_experts))


class Zeroed(WithALinearLayer):
    def init_parameters(self, generator):
        nn.init.zeros_(self.gate.weight)


def test_what_a_router_draws_for_its_parts_stands():
    """torch's own layers have a reset of their own, of which a router's initial values know nothing."""
    router, zeroed = WithALinearLayer(256, E), Zeroed(256, E)
    for each in (router, zeroed):
        initialise(each, 0)
    assert router.gate.weight.abs().max() <= 0.04, "at most two deviations of 0.02"
    assert router.gate.weight.std() > 0.015
    assert not zeroed.gate.weight.any()
    again = WithALinearLayer(256, E)
    initialise(again, 0)
    assert torch.equal(again.gate.bias, router.gate.bias), "torch's reset, by the seed and the name"
