"""One run of two processes for every built-in router: a step with half of each batch is a step with the whole."""

from pathlib import Path

import pytest

from routelab.conformance.cases import cases
from routelab.conformance.process_rules import check_in_processes
from routelab.core.plugins import load_plugin
from routelab.core.registry import only_for_now
from routelab.routers.router_registry import ROUTERS

STEADY = str(Path(__file__).resolve().parents[2] / "examples" / "steady.py")
BROKEN = '''
import torch
from torch import nn
from routelab.routers.base import Router, Routing
from routelab.routers.losses import balance_loss
from routelab.routers.plans import TopK


class Biased(Router):
    """Top-1 of logits and a bias that follows the load."""

    def __init__(self, d_model, num_experts):
        super().__init__(d_model, num_experts)
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))
        self.register_buffer("bias", torch.zeros(num_experts))
        self.register_buffer("load", torch.zeros(num_experts))

    def forward(self, inputs):
        logits = inputs.x_TD @ self.weight.T
        expert = (logits + self.bias).topk(1).indices
        if self.training and torch.is_grad_enabled():
            real = slice(None) if inputs.mask is None else inputs.mask_T
            self.load += torch.bincount(expert.flatten()[real], minlength=self.num_experts)
        return Routing(TopK(expert, logits.sigmoid().gather(1, expert), self.num_experts))

    def update(self):
        self.bias += 0.01 * (self.load.mean() - self.load)
        self.load.zero_()


class Summed(Biased):
    counts = ("load",)


class ProductOfMeans(Router):
    """Its loss is the square of this process's mean."""

    loss_weights = {"square": 1.0}

    def __init__(self, d_model, num_experts):
        super().__init__(d_model, num_experts)
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, inputs):
        logits = inputs.x_TD @ self.weight.T
        weight, expert = logits.sigmoid().topk(1)
        return Routing(TopK(expert, weight, self.num_experts), {"square": (logits.sigmoid().mean(0) ** 2).sum()})
'''


@pytest.mark.long
def test_two_processes_equal_one(importable):
    """All routers at once, the example's, and three made for it: a count that is not named in `counts`, one that is, a product
    of means."""
    made = importable("routers_of_a_group", BROKEN)
    own = {"biased": (made.Biased, {}), "summed": (made.Summed, {}), "product": (made.ProductOfMeans, {})}
    with only_for_now(ROUTERS):
        load_plugin(STEADY)
        found = check_in_processes({**cases(), **own, "steady": ("steady", {})}, [STEADY])
    assert found["biased"].failed
    assert found["biased"].detail.startswith("two processes and one, bias: off by")
    assert found["product"].failed
    assert "loss 'square'" in found["product"].detail or "gradient of" in found["product"].detail
    failed = {name: check.detail for name, check in found.items() if check.failed}
    assert failed.keys() == {"biased", "product"}, failed
    skipped = {name for name, check in found.items() if check.skipped}
    assert found["steady"].passed
    assert {cases()[name][0] for name in skipped} == {"base", "sinkhorn", "expert_choice"}
    assert "expert_choice" not in skipped
