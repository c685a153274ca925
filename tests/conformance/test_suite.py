"""The suite as third parties meet it: a list of checks, a pytest class, a command; and the machinery that it stands on."""

import json
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import routelab.experts.moe_layer
from routelab.cli.app import app, guarded
from routelab.conformance import RouterConformance, check_router
from routelab.conformance.cases import cases
from routelab.conformance.router_under_test import Subject
from routelab.conformance.suite import RULES
from routelab.core.errors import UsageError
from routelab.core.registry import only_for_now
from routelab.experts import activation_checkpointing as checkpointing
from routelab.routers.base import Router, Routing
from routelab.routers.plans import TopK
from routelab.routers.probes.random_tokens import tokens
from routelab.routers.router_registry import ROUTERS, register_router


class NeedsSixteen(Router):
    """Two of at least sixteen experts."""

    def __init__(self, d_model, num_experts, *, positive=True):
        super().__init__(d_model, num_experts)
        if num_experts < 16:
            raise ValueError(f"num_experts is {num_experts}; it must be at least 16")
        self.positive = positive
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, inputs):
        logits = F.linear(inputs.x_TD, self.weight)
        top, expert = logits.topk(2)
        return Routing(TopK(expert, top.softmax(-1) if self.positive else top - 4, self.num_experts), {}, logits)


class TestNeedsSixteen(RouterConformance):
    """A class that is not registered, with a number of experts of its own."""

    router = NeedsSixteen


def test_checks_say_what_broke_and_by_how_much():
    checks = check_router(NeedsSixteen, positive=False)
    assert [check.name for check in checks] == list(RULES)
    assert all(check.passed + check.failed + check.skipped == 1 for check in checks)
    assert [check.name for check in checks if check.failed] == ["values"]
    broken = next(check for check in checks if check.failed)
    assert "weight falls to -" in broken.detail
    assert broken.rule.endswith("not negative.")


def test_wrong_calls_are_refused():
    with pytest.raises(UsageError, match="did you mean 'topk'"):
        check_router("topkk")
    with pytest.raises(UsageError, match="did you mean 'positive'"):
        check_router(NeedsSixteen, positiv=True)
    with pytest.raises(UsageError, match="cannot be built with 4, 8, 16, 32, 64 experts: top_k is 65"):
        check_router("topk", top_k=65)


def test_the_command_says_it_in_exit_codes_and_json(capsys):
    def run(*words):
        code = guarded(lambda: app(["check", "router", *words], standalone_mode=False))
        return code, capsys.readouterr()

    code, said = run("topk", "top_k=1", "renormalize=false", "--json")
    assert code == 0
    rows = json.loads(said.out)
    assert {row["name"] for row in rows} == set(RULES)
    assert {row["state"] for row in rows} <= {"passed", "skipped"}
    code, said = run("tpok")
    assert code == 2
    assert "did you mean 'topk'" in said.err
    code, said = run("topk", "top_k")
    assert code == 2
    with only_for_now(ROUTERS):
        register_router("sixteen")(NeedsSixteen)
        code, said = run("sixteen", "positive=false")
    assert code == 1
    assert "broken: in training the plan's weight falls to -" in " ".join(said.out.split())
    assert "breaks values" in said.out


def test_shapes_are_drawn_without_hypothesis_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)

    class Odd(NeedsSixteen):
        """Fails on a group of three."""

        def forward(self, inputs):
            if inputs.x.shape[1] == 3:
                raise RuntimeError("three")
            return super().forward(inputs)

    assert RULES["any_shape"].check(Subject(NeedsSixteen)).passed
    assert "three" in RULES["any_shape"].check(Subject(Odd)).detail


def test_capacity_that_is_one_row_too_many_is_seen(monkeypatch):
    real = routelab.experts.moe_layer.capacity
    monkeypatch.setattr(routelab.experts.moe_layer, "capacity", lambda *given: real(*given) + 1)
    assert "has room for" in RULES["capacity_bounds"].check(Subject("topk")).detail
    monkeypatch.setattr(routelab.experts.moe_layer, "capacity", lambda *given: max(1, real(*given) - 1))
    assert "fit" in RULES["capacity_bounds"].check(Subject("topk")).detail


@pytest.mark.parametrize(("name", "part"), [("noisy_topk", "gradient"), ("deepseek", "load")])
def test_a_layer_that_routes_again_is_seen(monkeypatch, name, part):
    """Noise chooses other experts, and a load is counted twice."""
    monkeypatch.setattr(routelab.experts.moe_layer, "routed_once", lambda module, route: route())
    found = RULES["checkpointing"].check(Subject(name))
    assert found.failed
    assert part in found.detail


def test_checkpointing_asks_the_router_once_and_keeps_nothing():
    layer = Subject("deepseek").layer()
    calls = []
    layer.router.register_forward_hook(lambda *_: calls.append(1))
    x, ids = tokens(3, 8)
    # Two calls of one layer in one region are told apart by their order.
    out = checkpoint(lambda x: layer(layer(x, ids)[0], ids)[0], x.requires_grad_(), use_reentrant=False)
    assert len(calls) == 2
    assert len(checkpointing._KEPT) == 1
    out.sum().backward()
    assert len(calls) == 2
    del out
    assert len(checkpointing._KEPT) == 0


def test_every_built_in_router_is_a_case():
    assert {name for name in ROUTERS.names() if ROUTERS.origin(name) == "built in"} == {
        router for router, _ in cases().values()
    }


def test_rows_are_counted_alike_on_several_threads():
    """Others run the suite without this project's conftest, on as many threads as they have."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check = RULES["nominal_rows"].check(Subject("topk", {}))
    finally:
        torch.set_num_threads(before)
    assert check.passed, check.detail
