"""Dispatch against an oracle that runs every expert on every token and weighs afterwards."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from routelab.experts.dispatch import asked, run
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import exclude
from routelab.routers.plans import Blend, PerExpert, Ragged, Slots, TopK, token_expert

G, S, D, E = 2, 5, 8, 3
T = G * S


@pytest.fixture
def bank():
    made = ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=12, bias=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return made


@pytest.fixture
def x():
    return torch.randn(G, S, D, generator=torch.Generator().manual_seed(1))


def plan_of(name, drops=False, weight_on="output"):
    generator = torch.Generator().manual_seed(2)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    def index(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    if name == "topk":
        plan = TopK(index(E, T, 2), rand(T, 2), E)
    elif name == "per_expert":
        plan = PerExpert(rand(G, E, S).argsort(-1)[..., :3], rand(G, E, 3), E)
    elif name == "ragged":
        plan = Ragged(index(T, 17), index(E, 17), rand(17), E)
    elif name == "slots":
        return Slots(rand(G, S, E, 2), rand(G, S, E, 2), E, rand(E, 2) < 0.6 if drops else None)
    else:
        plan = Blend(rand(T, E), E)
    keep = rand(*plan.weight.shape) < 0.6 if drops else None
    return replace(plan, keep=keep, weight_on=weight_on)


def expert_of(bank, expert, rows):
    hidden = F.gelu(rows @ bank.up[expert] + bank.up_bias[expert])
    return hidden @ bank.down[expert] + bank.down_bias[expert]


def oracle(bank, x, plan):
    if isinstance(plan, Slots):
        out = torch.zeros_like(x)
        for expert in range(E):
            for place in range(plan.dispatch.shape[3]):
                if plan.keep is None or plan.keep[expert, place]:
                    seen = (plan.dispatch[:, :, expert, place].unsqueeze(-1) * x).sum(1)
                    done = expert_of(bank, expert, seen).unsqueeze(1)
                    out = out + plan.combine[:, :, expert, place].unsqueeze(-1) * done
        return out
    if isinstance(plan, Blend):
        token, expert = torch.arange(T).repeat_interleave(E), torch.arange(E).repeat(T)
    else:
        token, expert = token_expert(plan, S)
    weight = plan.weight.reshape(-1)
    keep = torch.ones_like(weight).bool() if plan.keep is None else plan.keep.reshape(-1)
    out = [torch.zeros(D) for _ in range(T)]
    flat = x.flatten(0, 1)
    for t, e, w, alive in zip(token.tolist(), expert.tolist(), weight, keep.tolist(), strict=True):
        if alive:
            row = expert_of(bank, e, w * flat[t]) if plan.weight_on == "input" else w * expert_of(bank, e, flat[t])
            out[t] = out[t] + row
    return torch.stack(out).view_as(x)


CASES = [
    (name, weight_on)
    for name in ("topk", "per_expert", "ragged", "slots", "blend")
    for weight_on in (("output",) if name == "slots" else ("output", "input"))
]


@pytest.mark.parametrize("kernel", ["auto", "fused", "grouped", "batched", "loop"])
@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize(("name", "weight_on"), CASES)
def test_against_the_oracle(bank, x, name, weight_on, drops, kernel):
    """Value and gradient. Dropped rows add nothing, not even the biases of the expert."""
    plan = plan_of(name, drops, weight_on)
    field = "combine" if name == "slots" else "weight"
    results = []
    for function in (lambda *given: run(*given, kernel)[0], oracle):
        value, tokens = getattr(plan, field).clone().requires_grad_(), x.clone().requires_grad_()
        bank.zero_grad()
        out = function(bank, tokens, replace(plan, **{field: value}))
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, tokens.grad, value.grad, *(p.grad.clone() for p in bank.parameters())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("name", ["topk", "per_expert", "ragged", "slots", "blend"])
def test_asked_counts_what_is_alive(name, drops):
    plan = plan_of(name, drops)
    if name == "slots":
        expected = G * (E * 2 if plan.keep is None else int(plan.keep.sum()))
    else:
        expected = plan.weight.numel() if plan.keep is None else int(plan.keep.sum())
    assert asked(plan, G) == expected
    assert not drops or expected < asked(plan_of(name), G)


@pytest.mark.parametrize(
    ("name", "executed"), [("topk", 2 * T), ("per_expert", G * E * 3), ("ragged", 17), ("slots", G * E * 2), ("blend", T * E)]
)
def test_rows_executed(bank, x, name, executed):
    assert run(bank, x, plan_of(name), "loop")[1] == executed


def test_dropped_rows_are_not_computed(bank, x):
    plan = plan_of("topk", drops=True)
    kept = int(plan.keep.sum())
    assert run(bank, x, plan, "grouped")[1] == kept < 2 * T
    load = torch.bincount(plan.expert[plan.keep], minlength=E)
    assert run(bank, x, plan, "batched")[1] == E * int(load.max())


@pytest.mark.parametrize("name", ["topk", "per_expert", "ragged", "slots", "blend"])
def test_exclude_takes_padding_out(bank, x, name):
    """As if the masked tokens were not there: output 0, and their x reaches no other output."""
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 0]]).bool()
    plan = exclude(plan_of(name, drops=name != "slots"), mask)
    out = run(bank, x, plan)[0]
    assert out[~mask].abs().max() == 0
    assert out[mask].abs().max() > 0
    changed = x.clone()
    changed[~mask] = 100.0
    torch.testing.assert_close(run(bank, changed, plan)[0], out, atol=1e-5, rtol=1e-4)


def test_exclude_without_mask_is_the_same_plan():
    plan = plan_of("topk")
    assert exclude(plan, None) is plan


def test_output_keeps_the_type_of_x(bank, x):
    for name in ("topk", "per_expert", "ragged", "slots", "blend"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert run(bank, x, plan_of(name))[0].dtype == torch.float32
