"""Kinds that are not a feed-forward of one's own: one linear map, and low-rank updates of a shared feed-forward."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from routelab.core.errors import UsageError
from routelab.core.initialisation import initialise
from routelab.experts.dispatch import run
from routelab.experts.feed_forward import KINDS, FeedForward, Kind
from routelab.experts.grouped_experts import ExpertBank
from routelab.routers.plans import Blend, PerExpert, Ragged, Slots, TopK

G, S, D, H, E = 2, 5, 8, 12, 3
T = G * S
BANKS = {"linear": ("linear", None), "lora": ("lora", None), "low-rank swiglu": ("swiglu", 4), "low-rank linear": ("linear", 4)}


def make_bank(name="lora", bias=True, hidden=H):
    kind, rank = BANKS[name]
    hidden = hidden if KINDS.get(kind).has_hidden else None
    bank = ExpertBank(kind, num_experts=E, d_model=D, d_hidden=hidden, bias=bias, rank=rank)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return bank


def plan_of(name, drops=False, weight_on="output"):
    generator = torch.Generator().manual_seed(2)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    plan = {
        "topk": lambda: TopK(torch.randint(0, E, (T, 2), generator=generator), rand(T, 2), E),
        "ragged": lambda: Ragged(
            torch.randint(0, T, (17,), generator=generator), torch.randint(0, E, (17,), generator=generator), rand(17), E
        ),
        "per_expert": lambda: PerExpert(rand(G, E, S).argsort(-1)[..., :3], rand(G, E, 3), E),
        "slots": lambda: Slots(rand(G, S, E, 2), rand(G, S, E, 2), E),
        "blend": lambda: Blend(rand(T, E), E),
    }[name]()
    if name == "slots":
        return replace(plan, keep=rand(E, 2) < 0.6) if drops else plan
    return replace(plan, keep=rand(*plan.weight.shape) < 0.6 if drops else None, weight_on=weight_on)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", BANKS)
def test_the_loop_is_the_formula(name, bias):
    """The oracle of the kernels, against the updated matrices W + a b written out."""
    bank, x = make_bank(name, bias), torch.randn(5, D)
    out = bank.loop(x, torch.tensor([0, 2, 3]))

    def project(value, matrix, expert):
        weight = getattr(bank, matrix)
        if bank.kind.rank is None:
            weight = weight[expert]
        else:
            weight = weight + getattr(bank, f"{matrix}_a")[expert] @ getattr(bank, f"{matrix}_b")[expert]
        vector = 0.0
        if bias:
            vector = getattr(bank, f"{matrix}_bias")
            vector = vector[expert] if bank.kind.rank is None else vector
        return value @ weight + vector

    for row, expert in enumerate([1, 1, 2, 2, 2]):
        if "linear" in name:
            expected = project(x[row], "linear", expert)
        elif name == "lora":
            expected = project(F.gelu(project(x[row], "up", expert)), "down", expert)
        else:
            hidden = F.silu(project(x[row], "gate", expert)) * project(x[row], "up", expert)
            expected = project(hidden, "down", expert)
        torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-4)


def results(bank, x, plan, kernel):
    field = "combine" if isinstance(plan, Slots) else "weight"
    x, value = x.clone().requires_grad_(), getattr(plan, field).clone().requires_grad_()
    bank.zero_grad()
    out, _ = run(bank, x, replace(plan, **{field: value}), kernel)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), x.grad, value.grad, *(parameter.grad.clone() for parameter in bank.parameters())]


CASES = [(name, weight_on) for name in ("topk", "ragged", "per_expert", "blend") for weight_on in ("output", "input")]


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize(("plan", "weight_on"), [*CASES, ("slots", "output")])
@pytest.mark.parametrize("name", ["linear", "lora"])
def test_every_kernel_on_every_plan(name, plan, weight_on, drops):
    """Value, and gradient of tokens, weights and every parameter; "fused" is another kernel here."""
    bank, made = make_bank(name), plan_of(plan, drops, weight_on)
    x = torch.randn(G, S, D, generator=torch.Generator().manual_seed(1))
    expected = results(bank, x, made, "loop")
    for kernel in ("auto", "fused", "grouped", "batched"):
        for got, wanted in zip(results(bank, x, made, kernel), expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4, msg=lambda text, kernel=kernel: f"{kernel}: {text}")


@pytest.mark.parametrize("name", BANKS)
def test_the_fused_kernel_is_not_for_them(name):
    """It would run the shared matrices as if they were each expert's own, and knows no bank without a hidden layer."""
    bank = make_bank(name)
    assert not bank.can_fuse(torch.device("cpu"), torch.float32)
    assert bank.kernel_for(10**6, torch.device("cpu"), torch.float32) == "grouped"


def test_a_rank_that_is_not_aligned_takes_another_kernel():
    bank = ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=H, rank=3)
    assert bank.kernel_for(10**6, torch.device("cpu"), torch.float32) == "batched"
    out = run(bank, torch.randn(G, S, D), plan_of("topk"), "auto")[0]
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", ["linear", "lora"])
@pytest.mark.parametrize("kernel", ["loop", "grouped", "batched", "fused", "auto"])
def test_autocast(name, kernel):
    """All products in bfloat16, the shared ones too; what comes back has the type of the tokens."""
    bank = make_bank(name, hidden=16)  # 32 bytes, as the grouped kernel wants
    x, plan = torch.randn(G, S, D, generator=torch.Generator().manual_seed(1)), plan_of("topk")
    full = run(bank, x, plan, "loop")[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bank.loop(x[0], torch.tensor([2, 2, 1])).dtype == torch.bfloat16
        low = run(bank, x, plan, kernel)[0]
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, atol=0.05 * full.abs().max().item(), rtol=0.05)


class Holder(torch.nn.Module):
    """Layer that declares the name of its experts as `MixtureLayer` does."""

    init_names = {"experts": ""}


def named(module, seed=3):
    """Initialise a module under the name of a feed-forward slot, as in a backbone."""
    host = torch.nn.Module()
    host.feed_forward = Holder()
    if isinstance(module, ExpertBank):
        host.feed_forward.experts = module
    else:
        host.feed_forward = module
    initialise(host, seed)
    return module


@pytest.mark.parametrize("kind", ["linear", "lora"])
def test_one_expert_starts_as_the_feed_forward(kind):
    hidden = None if kind == "linear" else H
    bank = named(ExpertBank(kind, num_experts=1, d_model=D, d_hidden=hidden, bias=True))
    dense = named(FeedForward(kind, D, hidden, bias=True))
    x = torch.randn(7, D)
    torch.testing.assert_close(bank.loop(x, torch.tensor([7])), dense(x))
    assert dense(x).abs().max() > 0.1


def test_low_rank_experts_all_start_as_the_dense_feed_forward_and_part_ways():
    """b starts at 0 and a does not: the first step moves every expert in a direction of its own."""
    bank, dense = named(ExpertBank("lora", num_experts=3, d_model=D, d_hidden=H)), named(FeedForward("gelu", D, H))
    x = torch.randn(6, D)
    out = bank.loop(x, torch.tensor([2, 2, 2]))
    torch.testing.assert_close(out, dense(x))
    assert bank.up_b.abs().max() == bank.down_b.abs().max() == 0
    assert not torch.equal(bank.up_a[0], bank.up_a[1])
    out.square().sum().backward()
    assert (bank.up_b.grad.flatten(1).abs().amax(1) > 0).all()
    assert not torch.allclose(bank.up_b.grad[0], bank.up_b.grad[1])
    more = named(ExpertBank("lora", num_experts=5, d_model=D, d_hidden=H))
    assert torch.equal(bank.up_a, more.up_a[:3])
    assert torch.equal(bank.up, more.up)


def test_row_cost_and_parameters():
    linear, lora = make_bank("linear", bias=False), make_bank("lora", bias=False)
    assert linear.row_cost.forward == 2 * D * D
    assert lora.row_cost.forward == 2 * 2 * D * H + 2 * (D * 8 + 8 * H) + 2 * (H * 8 + 8 * D)
    assert lora.row_cost.backward == 2 * lora.row_cost.forward
    assert FeedForward("lora", D, H).cost(3).forward == 3 * 2 * 2 * D * H, "a dense feed-forward has no updates"
    assert set(lora.own_parameters()) == {"up_a", "up_b", "down_a", "down_b"}
    assert set(linear.own_parameters()) == {"linear"}


def test_bad_kinds_and_sizes():
    with pytest.raises(ValueError, match="d_hidden is 12; experts of kind 'linear' have no hidden width: leave it out"):
        ExpertBank("linear", num_experts=2, d_model=4, d_hidden=12)
    with pytest.raises(ValueError, match="d_hidden is 12; experts of kind 'linear'"):
        FeedForward("linear", 4, 12)
    with pytest.raises(ValueError, match="kind 'gelu' needs a hidden width"):
        ExpertBank("gelu", num_experts=2, d_model=4)
    with pytest.raises(ValueError, match="rank is 0; it must be at least 1"):
        ExpertBank("lora", num_experts=2, d_model=4, d_hidden=4, rank=0)
    with pytest.raises(ValueError, match="'copy' is a zero-compute expert, not a kind of feed-forward.*experts.copy=1"):
        ExpertBank("copy", num_experts=2, d_model=4, d_hidden=4)
    with pytest.raises(ValueError, match="a gated kind needs an activation"):
        Kind(None, gated=True)
    with pytest.raises(UsageError, match="unknown expert kind 'lorra'; did you mean 'lora'"):
        FeedForward("lorra", 4, 4)
