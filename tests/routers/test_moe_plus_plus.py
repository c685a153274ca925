"""MoE++: unequal parts in loss, capacity and cost, and the memory of the layer before."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from routelab.core.initialisation import initialise
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.experts.zero_compute import ZeroCompute
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.losses import balance_loss

D, REAL, FREE = 8, 4, 3
E = REAL + FREE


def make_router(**options):
    router = build_router("moe_plus_plus", d_model=D, num_experts=E, **{"zero_compute": FREE, **options})
    initialise(router, 0)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.mul_(50)
    return router


def make_layer(**options):
    layer_options = {name: options.pop(name) for name in ("capacity_factor", "capacity_group") if name in options}
    bank = ExpertBank("gelu", num_experts=REAL, d_model=D, d_hidden=12)
    layer = MixtureLayer(
        make_router(**options), bank, zero_compute=ZeroCompute(D, ["zero", "copy", "constant"]), **layer_options
    )
    initialise(layer.experts, 0)
    initialise(layer.zero_compute, 0)
    return layer


def test_weights_are_the_probabilities():
    router, x = make_router(), torch.randn(1, 5, D)
    routing = router(RouterInput(x))
    probs = (x[0] @ router.weight.T).softmax(-1)
    best = probs.topk(2, -1)
    assert torch.equal(routing.plan.expert, best.indices)
    torch.testing.assert_close(routing.plan.weight, best.values)
    summed = make_router(renormalize=True)(RouterInput(x)).plan.weight
    torch.testing.assert_close(summed, best.values / best.values.sum(-1, keepdim=True))


def test_parts_by_hand():
    """8 real and 3 zero-compute experts: 0.75 / (0.75 * 8 + 3) = 1/12 and 1/9, of which the real ones have 2/3."""
    router = build_router("moe_plus_plus", d_model=D, num_experts=11, zero_compute=3)
    shares = router.shares(torch.device("cpu"))
    torch.testing.assert_close(shares, torch.tensor([1 / 12] * 8 + [1 / 9] * 3, dtype=torch.float64))
    bank = ExpertBank("gelu", num_experts=8, d_model=D, d_hidden=4)
    layer = MixtureLayer(router, bank, zero_compute=ZeroCompute(D, ["zero", "copy", "constant"]))
    assert layer.nominal_rows(2, 9) == pytest.approx(2 * 18 * 2 / 3)
    alone = build_router("moe_plus_plus", d_model=D, num_experts=8)
    assert MixtureLayer(alone, bank).nominal_rows(2, 9) == 36


def test_the_loss_is_the_papers_times_a_constant():
    """sum_e eta_e f_e P_e, eta = 1 or tau, f the share of tokens: times (E_real + F / tau) / k it is 1 at the intended parts."""
    tau, k, tokens = 0.6, 2, 40
    router, x = make_router(tau=tau), torch.randn(1, tokens, D)
    routing = router(RouterInput(x))
    eta = torch.tensor([1.0] * REAL + [tau] * FREE)
    frequency = F.one_hot(routing.plan.expert, E).sum((0, 1)) / tokens
    paper = (eta * frequency * routing.probs.mean(0)).sum()
    torch.testing.assert_close(routing.losses["balance"], paper * (REAL + FREE / tau) / k)


def test_the_loss_at_the_intended_parts_is_one_and_at_tau_one_the_usual():
    probs, expert = torch.rand(30, E).softmax(-1), torch.randint(0, E, (30, 2))
    equal = torch.full((E,), 1 / E, dtype=torch.float64)
    torch.testing.assert_close(balance_loss(probs, expert, None, equal), balance_loss(probs, expert))
    # 9 choices: parts 1/9, 2/9, 6/9.
    shares = torch.tensor([1 / 9, 2 / 9, 6 / 9], dtype=torch.float64)
    expert = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2, 2]).unsqueeze(1)
    assert balance_loss(shares.float().expand(9, 3), expert, None, shares).item() == pytest.approx(1.0)


@pytest.mark.parametrize(("masked", "rooms"), [(False, (3, 4)), (True, (2, 2))])
def test_capacity_is_larger_for_zero_compute_experts(masked, rooms):
    """tau 0.75, 4 real, 3 free: parts 1/8 and 1/6. ceil(2 * 12 / 8) = 3 and ceil(2 * 12 / 6) = 4 of 12 tokens with two choices
    each and factor 1; of 6 real tokens 2 (1.5) and 2."""
    layer = make_layer(capacity_factor=1.0)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[1, 0], layer.router.weight[5, 0] = 2.0, 1.0
    x = torch.zeros(1, 12, D)
    x[..., 0] = 1.0
    mask = torch.tensor([[True] * 6 + [False] * 6]) if masked else None
    _, routing = layer(x, mask=mask)
    assert routing.plan.expert.unique().tolist() == [1, 5]
    kept = {expert: int((routing.plan.keep & (routing.plan.expert == expert)).sum()) for expert in (1, 5)}
    assert (kept[1], kept[5]) == rooms
    tokens = 6 if masked else 12
    assert (routing.work.assigned, routing.work.kept) == (tokens, rooms[0])


def test_capacity_by_sequence():
    layer = make_layer(capacity_factor=1.0, capacity_group="sequence")
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[1, 0], layer.router.weight[5, 0] = 2.0, 1.0
    x = torch.zeros(2, 12, D)
    x[..., 0] = 1.0
    keep = layer(x)[1].plan.keep.view(2, 12, 2)
    assert keep.sum(1).tolist() == [[3, 4], [3, 4]]


class Two(nn.Module):
    """Two layers, the second with the residual."""

    def __init__(self, **options):
        super().__init__()
        self.first, self.second = make_layer(capacity_factor=None, **options), make_layer(capacity_factor=None, follows=True)
        self.second.follow(self.first)

    def forward(self, x):
        middle, first = self.first(x)
        out, second = self.second(x + middle)
        return out, first, second, x + middle


def test_a_layer_adds_the_logits_of_the_one_before():
    model, x = Two(), torch.randn(2, 5, D)
    _, first, second, middle = model(x)
    router = model.second.router
    expected = middle.flatten(0, 1) @ router.weight.T + first.logits @ router.residual.T
    torch.testing.assert_close(second.logits, expected)
    assert "residual" not in dict(model.first.router.named_parameters())
    assert set(model.state_dict()) == {
        *(f"first.{name}" for name in model.first.state_dict()), *(f"second.{name}" for name in model.second.state_dict())
    }  # fmt: skip


def test_gradient_flows_through_the_residual():
    """The second router's loss alone moves the first router, along the logits and not only along the tokens."""
    model, x = Two(), torch.randn(2, 5, D)
    with torch.no_grad():
        model.first.experts.down.zero_()  # and so nothing of the first layer's plan reaches the tokens but copies
        model.first.zero_compute.value.zero_()
    _, _, second, _ = model(x)
    second.losses["balance"].backward()
    for router, name in ((model.first.router, "weight"), (model.second.router, "weight"), (model.second.router, "residual")):
        assert getattr(router, name).grad.abs().max() > 0, name
    alone = copy.deepcopy(model)
    alone.second.router.zero_grad()
    alone.first.router.zero_grad()
    with torch.no_grad():
        alone.second.router.residual.zero_()
    _, _, second, _ = alone(x)
    second.losses["balance"].backward()
    assert not torch.allclose(alone.first.router.weight.grad, model.first.router.weight.grad)


def test_logits_of_another_batch_are_never_used():
    model, x = Two(), torch.randn(2, 5, D)
    model(x)
    with pytest.raises(ValueError, match="the layer that this one follows has not run since"):
        model.second(x)
    model.first(torch.randn(1, 3, D))
    with pytest.raises(ValueError, match=r"the layer before has logits of shape \(3, 7\), this one \(10, 7\)"):
        model.second(x)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x)[0], model(x)[0])
    assert twin.second.__dict__["_before"] is twin.first


def test_the_residual_is_charged():
    router, x = make_router(follows=True), torch.randn(2, 6, D, requires_grad=True)
    before = torch.randn(12, E, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        routing = router(RouterInput(x, before=before))
        (routing.plan.weight.sum() + routing.losses["balance"]).backward()
    assert router.cost(2, 6).training == counter.get_total_flops()
    assert router.cost(2, 6).training - make_router().cost(2, 6).training == 3 * 2 * 12 * E * E


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 8}, "top_k is 8; it must be between 1 and the number of experts"),
        ({"tau": 0.0}, "tau is 0.0; it must be above 0 and at most 1"),
        ({"tau": 1.5}, "tau is 1.5"),
        ({"zero_compute": 7}, "zero_compute is 7; it must be at least 0 and below the 7 experts"),
        ({"top_k": 1, "renormalize": True}, "gives every token the weight 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(Exception, match=message):
        make_router(**options)
