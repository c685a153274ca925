"""Zero-compute experts against the sum written out, and what a layer that has them counts and charges."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from routelab.core.initialisation import initialise
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer, exclude
from routelab.experts.zero_compute import ZeroCompute, split
from routelab.routers.base import Router, Routing
from routelab.routers.build import build_router
from routelab.routers.plans import Blend, PerExpert, Ragged, Slots, TopK
from routelab.training.ledger import counter_formulas

G, S, D, E = 2, 5, 8, 3
T = G * S
KINDS = ("zero", "copy", "constant", "constant")
F, N = len(KINDS), E + len(KINDS)


def make_free(kinds=KINDS):
    free = ZeroCompute(D, kinds)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return free


def make_bank():
    bank = ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=12, bias=True)
    initialise(bank, 0)
    return bank


class Fixed(Router):
    """Returns what it was given."""

    def __init__(self, plan):
        super().__init__(D, plan.num_experts)
        self.plan = plan

    def forward(self, inputs):
        return Routing(self.plan)


def plan_of(name, drops=False, weight_on="output"):
    generator = torch.Generator().manual_seed(2)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    plan = {
        "topk": lambda: TopK(rand(T, N).topk(3, -1).indices, rand(T, 3), N),
        "ragged": lambda: Ragged(*(rand(T, N) < 0.5).nonzero(as_tuple=True), torch.empty(0), N),
        "per_expert": lambda: PerExpert(rand(G, N, S).argsort(-1)[..., :3], rand(G, N, 3), N),
        "slots": lambda: Slots(rand(G, S, N, 2), rand(G, S, N, 2), N),
        "blend": lambda: Blend(rand(T, N), N),
    }[name]()
    if name == "ragged":
        plan = replace(plan, weight=rand(plan.token.numel()))
    if name == "slots":
        return replace(plan, keep=rand(N, 2) < 0.6) if drops else plan
    return replace(plan, keep=rand(*plan.weight.shape) < 0.6 if drops else None, weight_on=weight_on)


def expert_of(bank, free, expert, rows):
    """One expert on rows (..., D), by the definitions of MoE++."""
    if expert < E:
        hidden = torch.nn.functional.gelu(rows @ bank.up[expert] + bank.up_bias[expert])
        return hidden @ bank.down[expert] + bank.down_bias[expert]
    kind = KINDS[expert - E]
    if kind == "constant":
        number = expert - E - 2
        a = (rows @ free.gate[number]).softmax(-1)
        return a[..., :1] * rows + a[..., 1:] * free.value[number]
    return rows if kind == "copy" else torch.zeros_like(rows)


def oracle(bank, free, x, plan):
    if isinstance(plan, Slots):
        out = torch.zeros_like(x)
        for expert in range(N):
            for place in range(2):
                if plan.keep is None or plan.keep[expert, place]:
                    seen = (plan.dispatch[:, :, expert, place].unsqueeze(-1) * x).sum(1, keepdim=True)
                    out = out + plan.combine[:, :, expert, place].unsqueeze(-1) * expert_of(bank, free, expert, seen)
        return out
    rows, weight = x.flatten(0, 1), plan.weight.reshape(-1)
    if isinstance(plan, PerExpert):
        token = (plan.position + torch.arange(G).view(-1, 1, 1) * S).reshape(-1)
        expert = torch.arange(N).view(1, -1, 1).expand_as(plan.position).reshape(-1)
    elif isinstance(plan, Ragged):
        token, expert = plan.token, plan.expert
    else:
        token = torch.arange(T).unsqueeze(1).expand_as(plan.weight).reshape(-1)
        expert = plan.expert.reshape(-1) if isinstance(plan, TopK) else torch.arange(N).repeat(T)
    keep = torch.ones_like(weight, dtype=torch.bool) if plan.keep is None else plan.keep.reshape(-1)
    out = [torch.zeros(D) for _ in range(T)]
    for t, e, w, alive in zip(token.tolist(), expert.tolist(), weight, keep.tolist(), strict=True):
        if alive:
            done = expert_of(bank, free, e, rows[t] * w) if plan.weight_on == "input" else w * expert_of(bank, free, e, rows[t])
            out[t] = out[t] + done
    return torch.stack(out).view_as(x)


CASES = [(name, weight_on) for name in ("topk", "ragged", "per_expert", "blend") for weight_on in ("output", "input")]


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize(("name", "weight_on"), [*CASES, ("slots", "output")])
def test_the_layer_is_the_sum_over_all_experts(name, weight_on, drops):
    """Value, and gradient of tokens, weights, bank and constants."""
    bank, free, plan = make_bank(), make_free(), plan_of(name, drops, weight_on)
    field = "combine" if name == "slots" else "weight"
    parameters = [*bank.parameters(), *free.parameters()]
    results = []
    for way in ("layer", "oracle"):
        x = torch.randn(G, S, D, generator=torch.Generator().manual_seed(1)).requires_grad_()
        value = getattr(plan, field).clone().requires_grad_()
        made = replace(plan, **{field: value})
        out = MixtureLayer(Fixed(made), bank, zero_compute=free)(x)[0] if way == "layer" else oracle(bank, free, x, made)
        loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
        results.append([out, *torch.autograd.grad(loss, [x, value, *parameters])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["topk", "ragged", "per_expert", "slots", "blend"])
def test_rows_are_those_of_the_bank(name):
    plan = plan_of(name, drops=True)
    work = MixtureLayer(Fixed(plan), make_bank(), zero_compute=make_free(), kernel="grouped")(torch.randn(G, S, D))[1].work
    if name in ("topk", "ragged"):
        asked, kept = int((plan.expert < E).sum()), int((plan.keep & (plan.expert < E)).sum())
        # A plan's own drops were made before the layer saw it.
        assert (work.assigned, work.kept, work.executed) == (kept, kept, kept)
        assert 0 < kept < asked
    else:
        each = {"per_expert": G * 3, "slots": G * 2, "blend": T}[name]
        assert work.executed == each * E


def test_padding_and_everything_on_zero_experts():
    """No row at all is legal; copies of padding are not made."""
    plan = TopK(torch.tensor([[E, E + 1]] * T), torch.full((T, 2), 0.5), N)
    layer, x = MixtureLayer(Fixed(plan), make_bank(), zero_compute=make_free()), torch.randn(G, S, D)
    out, routing = layer(x)
    torch.testing.assert_close(out, 0.5 * x)
    assert (routing.work.assigned, routing.work.kept, routing.work.executed) == (0, 0, 0)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    masked, routing = layer(x, mask=mask)
    assert masked[0, 3:].abs().max() == 0
    torch.testing.assert_close(masked[mask], out[mask])


def test_split_counts_from_zero_again():
    plan = TopK(torch.tensor([[0, 4], [6, 2]]), torch.ones(2, 2), N, torch.tensor([[True, True], [True, False]]))
    real, rest = split(plan, E)
    assert (real.num_experts, rest.num_experts) == (E, F)
    assert real.keep.tolist() == [[True, False], [False, False]]
    assert rest.keep.tolist() == [[False, True], [True, False]]
    assert rest.expert[rest.keep].tolist() == [1, 3]
    assert real.expert.max() < E


def test_the_bank_is_charged_for_its_rows_only():
    """And the layer for the constants' products, for every token, as torch counts them."""
    bank, free = make_bank(), make_free()
    cost = free.cost(T)
    with FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        x = torch.randn(G, S, D, requires_grad=True)
        free(x, TopK(torch.randint(0, F, (T, 2)), torch.rand(T, 2), F)).sum().backward()
    assert counter.get_total_flops() == cost.training
    assert cost.forward == T * (2 * D * 4 + 2 * 2 * D)
    assert make_free(("zero", "copy")).cost(T).training == 0

    class Half(Router):
        def forward(self, inputs):
            tokens = inputs.x_TD.shape[0]
            return Routing(TopK(torch.tensor([[0, E]] * tokens), torch.ones(tokens, 2), N))

    layer = MixtureLayer(Half(D, N), bank, zero_compute=free)
    assert layer(torch.randn(G, S, D))[1].work.executed == T
    assert layer.fixed_cost(G, S) == cost


@pytest.mark.parametrize("router", ["topk", "expert_choice", "soft", "dense_gate", "top2", "llama4"])
def test_any_router_may_have_them(router):
    """The nominal share of the bank is its part of all experts, which is exact where every expert gets as much."""
    made = build_router(router, d_model=D, num_experts=N)
    layer = MixtureLayer(made, make_bank(), zero_compute=make_free(), capacity_factor=None, kernel="loop").eval()
    out, routing = layer(torch.randn(4, 14, D))
    assert torch.isfinite(out).all()
    assert layer.nominal_rows(4, 14) == pytest.approx(made.nominal_rows(4, 14) * E / N)
    if router in ("expert_choice", "soft", "dense_gate"):
        assert routing.work.executed == pytest.approx(layer.nominal_rows(4, 14))
    else:
        assert routing.work.executed <= made.nominal_rows(4, 14)


def test_capacity_counts_zero_compute_experts_alike():
    """k n / E of a router that means all of them to be equal: ceil(1.0 * 1 * 10 / 7) = 2 each."""
    plan = TopK(torch.tensor([[0]] * 6 + [[E + 1]] * 4), torch.ones(T, 1), N)
    layer = MixtureLayer(Fixed(plan), make_bank(), zero_compute=make_free(), capacity_factor=1.0)
    out, routing = layer(torch.randn(G, S, D))
    assert routing.plan.keep.flatten().tolist() == [True, True, False, False, False, False, True, True, False, False]
    assert (routing.work.assigned, routing.work.kept) == (6, 2)
    assert out.flatten(0, 1)[8:].abs().max() == 0


def test_bf16_autocast():
    layer, x = MixtureLayer(Fixed(plan_of("topk")), make_bank(), zero_compute=make_free()), torch.randn(G, S, D)
    full = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)[0]
    torch.testing.assert_close(low.float(), full, atol=0.05, rtol=0.05)
    assert not torch.equal(low.float(), full)


def test_more_constants_change_none_of_the_first():
    few, many = ZeroCompute(D, ["constant"]), ZeroCompute(D, ["copy", "constant", "constant"])
    initialise(few, 1)
    initialise(many, 1)
    assert torch.equal(few.gate[0], many.gate[0])
    assert torch.equal(few.value[0], many.value[0])
    assert not torch.equal(many.value[0], many.value[1])
    assert list(ZeroCompute(D, ["zero", "copy"]).parameters()) == []


def test_what_does_not_fit_is_refused():
    topk = build_router("topk", d_model=D, num_experts=N)
    with pytest.raises(ValueError, match="num_experts=7, the experts 8 and 3 and 2 zero-compute ones; they must be equal"):
        MixtureLayer(topk, make_bank(), zero_compute=ZeroCompute(D, ["zero", "copy"]))
    with pytest.raises(ValueError, match="'gelu' computes products; zero-compute experts are zero, copy and constant"):
        ZeroCompute(D, ["gelu"])
    router = build_router("moe_plus_plus", d_model=D, num_experts=N, zero_compute=2)
    with pytest.raises(ValueError, match="takes the last 2 experts for zero-compute ones; the layer has 4 of them"):
        MixtureLayer(router, make_bank(), zero_compute=make_free())


def test_exclude_leaves_both_parts_without_padding():
    mask = torch.tensor([[True, False, True, True, True], [True] * 5])
    for name in ("topk", "ragged", "per_expert", "blend"):
        for part in split(exclude(plan_of(name), mask), E):
            assert part.keep is not None
            assert not part.keep.all()
