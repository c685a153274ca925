"""The four kernels of the bank must be one function: a benchmark picks among them, never a result."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from routelab.core.errors import UsageError
from routelab.core.initialisation import initialise
from routelab.core.registry import only_for_now
from routelab.experts.dispatch import run
from routelab.experts.feed_forward import KINDS, FeedForward, Kind, register_expert
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.build import build_router
from routelab.routers.plans import TopK

KIND_NAMES = ("relu", "gelu", "swiglu", "clamped_swiglu")
"""With a hidden layer, and experts of their own."""
ALL_KINDS = (*KIND_NAMES, "linear", "lora")


def make_bank(kind="gelu", experts=4, width=8, hidden=12, bias=False, dtype=torch.float32, seed=0):
    hidden = hidden if KINDS.get(kind).has_hidden else None
    bank = ExpertBank(kind, num_experts=experts, d_model=width, d_hidden=hidden, bias=bias).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bank.parameters():  # biases too: at 0 a missing one would not show
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return bank


def assignments(name, experts=4):
    """Experts per token (T, k): the shapes at which sorting, offsets and padding go wrong."""
    generator = torch.Generator().manual_seed(1)
    return {
        "spread": torch.randint(0, experts, (13, 2), generator=generator),
        "empty_experts": torch.tensor([[0], [3], [0], [3], [3]]),
        "first_and_last_empty": torch.tensor([[1], [2], [1]]),
        "all_to_one": torch.full((9, 1), 2),
        "one_token": torch.tensor([[3]]),
        "every_expert": torch.arange(experts).expand(7, experts).contiguous(),
        "same_expert_twice": torch.tensor([[1, 1], [0, 1]]),
    }[name]


def gradients(bank, x, plan, kernel):
    x = x.clone().requires_grad_()
    weight = plan.weight.clone().requires_grad_()
    bank.zero_grad()
    out, executed = run(bank, x, TopK(plan.expert, weight, plan.num_experts, plan.keep, plan.weight_on), kernel)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    parts = {"out": out.detach(), "x": x.grad, "weight": weight.grad}
    parts |= {name: parameter.grad.clone() for name, parameter in bank.named_parameters()}
    return parts, executed


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    "name", ["spread", "empty_experts", "first_and_last_empty", "all_to_one", "one_token", "every_expert", "same_expert_twice"]
)
def test_kernels_agree(kind, bias, name):
    """Value, and gradient of x, of the weights and of every parameter."""
    expert = assignments(name)
    bank = make_bank(kind, bias=bias)
    x = torch.randn(1, expert.shape[0], 8, generator=torch.Generator().manual_seed(2))
    plan = TopK(expert, torch.rand(expert.shape, generator=torch.Generator().manual_seed(3)), 4)
    oracle, rows = gradients(bank, x, plan, "loop")
    assert rows == expert.numel()
    fused, fused_rows = gradients(bank, x, plan, "fused")
    same(fused, oracle)
    assert fused_rows == expert.numel()
    grouped, grouped_rows = gradients(bank, x, plan, "grouped")
    same(grouped, oracle)
    assert grouped_rows == expert.numel()
    batched, batched_rows = gradients(bank, x, plan, "batched")
    same(batched, oracle)
    assert batched_rows == 4 * int(torch.bincount(expert.flatten(), minlength=4).max())
    same(gradients(bank, x, plan, "auto")[0], oracle)


@pytest.mark.parametrize("kernel", ["fused", "grouped", "batched", "auto"])
@pytest.mark.parametrize("weight_on", ["output", "input"])
def test_kernels_agree_with_drops(kernel, weight_on):
    expert = assignments("spread")
    keep = torch.rand(expert.shape, generator=torch.Generator().manual_seed(4)) < 0.5
    plan = TopK(expert, torch.rand(expert.shape, generator=torch.Generator().manual_seed(3)), 4, keep, weight_on)
    bank, x = make_bank("swiglu", bias=True), torch.randn(1, 13, 8, generator=torch.Generator().manual_seed(2))
    same(gradients(bank, x, plan, kernel)[0], gradients(bank, x, plan, "loop")[0])


@pytest.mark.parametrize("kind", ["gelu", "linear", "lora"])
@pytest.mark.parametrize("kernel", ["fused", "grouped", "batched", "loop", "auto"])
@pytest.mark.parametrize("bias", [False, True])
def test_everything_dropped(kernel, bias, kind):
    """A batch of padding is legal: no row, output 0, gradients 0 and not missing or NaN."""
    expert = assignments("spread")
    plan = TopK(expert, torch.rand(expert.shape), 4, torch.zeros(expert.shape, dtype=torch.bool))
    parts, _ = gradients(make_bank(kind, bias=bias), torch.randn(1, 13, 8), plan, kernel)
    for name, value in parts.items():
        assert value.abs().max() == 0, name


@pytest.mark.parametrize("width", [(6, 10), (8, 10), (6, 12), (1, 1), (3, 5)])
def test_unaligned_widths(width):
    """`grouped_mm` wants multiples of 16 bytes; "auto" must not choose it elsewhere."""
    bank = make_bank("swiglu", width=width[0], hidden=width[1], bias=True)
    expert = assignments("spread")
    x = torch.randn(1, 13, width[0], generator=torch.Generator().manual_seed(2))
    plan = TopK(expert, torch.rand(expert.shape, generator=torch.Generator().manual_seed(3)), 4)
    oracle, _ = gradients(bank, x, plan, "loop")
    same(gradients(bank, x, plan, "auto")[0], oracle)
    same(gradients(bank, x, plan, "batched")[0], oracle)
    same(gradients(bank, x, plan, "fused")[0], oracle)


def test_auto_chooses_by_shape_and_threads():
    """As benchmarks/kernels.py measured; where the fused kernel cannot run the choice is among the others."""
    cpu, before = torch.device("cpu"), torch.get_num_threads()
    bank = ExpertBank("swiglu", num_experts=8, d_model=256, d_hidden=512)
    try:
        torch.set_num_threads(2)
        assert bank.kernel_for(8192, cpu, torch.float32) == "fused"
        assert bank.kernel_for(64, cpu, torch.float32) == "grouped"
        assert bank.kernel_for(64, cpu, torch.float32, largest=20) == "batched"
        assert bank.kernel_for(64, cpu, torch.float32, largest=40) == "grouped", "padding to five times the rows"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert bank.kernel_for(8192, cpu, torch.bfloat16) == "grouped"
            assert bank.kernel_for(8192, cpu, torch.float32) == "grouped"
        assert bank.kernel_for(8192, torch.device("cuda"), torch.bfloat16) == "grouped"
        assert bank.kernel_for(8192, torch.device("cuda"), torch.float32) == "batched"
        torch.set_num_threads(1)
        assert bank.kernel_for(8192, cpu, torch.float32) == "fused"
        assert bank.kernel_for(1024, cpu, torch.float32) == "grouped"
        bank.double()
        assert bank.kernel_for(512, cpu, torch.float64) == "fused"
        assert bank.kernel_for(64, cpu, torch.float64, largest=20) == "batched"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_loop_is_the_formula(kind):
    """The oracle itself, against products written out."""
    bank, x = make_bank(kind, bias=True), torch.randn(5, 8)
    out = bank.loop(x, torch.tensor([0, 2, 0, 3]))
    for row, expert in enumerate([1, 1, 3, 3, 3]):
        up = x[row] @ bank.up[expert] + bank.up_bias[expert]
        if kind == "swiglu":
            hidden = F.silu(x[row] @ bank.gate[expert] + bank.gate_bias[expert]) * up
        elif kind == "clamped_swiglu":
            gate = (x[row] @ bank.gate[expert] + bank.gate_bias[expert]).clamp_max(7)
            hidden = gate * (1.702 * gate).sigmoid() * (1 + up.clamp(-7, 7))
        else:
            hidden = F.relu(up) if kind == "relu" else F.gelu(up)
        torch.testing.assert_close(out[row], hidden @ bank.down[expert] + bank.down_bias[expert], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gelu", "linear", "lora"])
@pytest.mark.parametrize("bias", [False, True])
def test_rows_past_the_counts_are_zero(bias, kind):
    """`grouped_mm` leaves them undefined, and NaN in them must reach neither values nor gradients."""
    bank, rows = make_bank(kind, bias=bias), torch.randn(6, 8)
    rows[4:] = torch.nan
    rows.requires_grad_()
    count = torch.tensor([1, 0, 3, 0])
    out = bank.grouped(rows, count)
    assert out[4:].abs().max() == 0
    torch.testing.assert_close(out[:4], bank.loop(rows, count)[:4], atol=1e-5, rtol=1e-4)
    out.sum().backward()
    assert torch.isfinite(rows.grad).all()
    for name, parameter in bank.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert bank.loop(rows, count)[4:].abs().max() == 0


@pytest.mark.parametrize("kernel", ["loop", "batched", "fused"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_gradcheck(kernel, kind):
    """In float64, against finite differences; relu's corners are not hit with these numbers."""
    bank = make_bank(kind, experts=3, width=3, hidden=2, bias=True, dtype=torch.float64)
    expert, keep = torch.tensor([[0, 2], [2, 1], [0, 1], [2, 0]]), torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1]]).bool()
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in bank.named_parameters()]

    def through(x, weight, *values):
        plan = TopK(expert, weight, 3, keep)
        return torch.func.functional_call(
            _Run(bank, plan, kernel), {f"bank.{name}": value for name, value in zip(names, values, strict=True)}, (x,)
        )

    parameters = [parameter.detach().clone().requires_grad_() for parameter in bank.parameters()]
    assert torch.autograd.gradcheck(through, (x, weight, *parameters))


class _Run(nn.Module):
    def __init__(self, bank, plan, kernel):
        super().__init__()
        self.bank, self.plan, self.kernel = bank, plan, kernel

    def forward(self, x):
        return run(self.bank, x, self.plan, self.kernel)[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("kernel", ["fused", "grouped", "batched", "loop"])
def test_one_expert_is_the_feed_forward(kind, bias, kernel):
    bank, dense = make_bank(kind, experts=1, bias=bias), FeedForward(kind, 8, 12, bias)
    dense.load_state_dict({name: value[0] for name, value in bank.state_dict().items()})
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    parts, _ = gradients(bank, x, TopK(torch.zeros(10, 1, dtype=torch.int64), torch.ones(10, 1), 1), kernel)
    x.requires_grad_()
    out = dense(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    torch.testing.assert_close(parts["out"], out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts["x"], x.grad, atol=1e-5, rtol=1e-4)
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(parts[name][0], parameter.grad, atol=1e-5, rtol=1e-4)


class Host(nn.Module):
    """A module with one feed-forward slot, as a block of a backbone has."""

    def __init__(self, feed_forward):
        super().__init__()
        self.feed_forward = feed_forward
        self.out = nn.Linear(8, 3)


def mixture(experts, kind="swiglu"):
    router = build_router("topk", d_model=8, num_experts=experts, top_k=1, renormalize=experts == 1)
    return MixtureLayer(router, ExpertBank(kind, num_experts=experts, d_model=8, d_hidden=12, bias=True))


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_one_expert_starts_as_the_feed_forward(kind):
    """Same seed, same parameter name: otherwise dense and routed arms would differ before the first step."""
    dense, routed = Host(FeedForward(kind, 8, 12, bias=True)), Host(mixture(1, kind))
    initialise(dense, 3)
    torch.manual_seed(17)  # nothing may come from the global state
    initialise(routed, 3)
    for name, parameter in dense.feed_forward.named_parameters():
        assert torch.equal(getattr(routed.feed_forward.experts, name)[0], parameter), name
    assert torch.equal(dense.out.weight, routed.out.weight)
    assert dense.feed_forward.up.std() > 0.1
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(routed.feed_forward(x)[0], dense.feed_forward(x), atol=1e-6, rtol=1e-5)


def test_more_experts_change_none_of_the_first():
    few, many, other = Host(mixture(2)), Host(mixture(5)), Host(mixture(2))
    initialise(few, 3)
    initialise(many, 3)
    initialise(other, 4)
    assert torch.equal(few.feed_forward.experts.up, many.feed_forward.experts.up[:2])
    assert not torch.equal(few.feed_forward.experts.up, other.feed_forward.experts.up)
    up = many.feed_forward.experts.up
    assert all(not torch.equal(up[0], up[expert]) for expert in range(1, 5)), "experts must not start alike"


def test_initialise_leaves_the_random_state():
    host = Host(mixture(2))
    state = torch.random.get_rng_state()
    initialise(host, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_initial_spread():
    """N(0, 1 / fan in), cut at two deviations (which shrinks the deviation to .88); biases 0."""
    bank = ExpertBank("gelu", num_experts=3, d_model=64, d_hidden=256, bias=True)
    initialise(bank, 0)
    for name, fan_in in (("up", 64), ("down", 256)):
        value = getattr(bank, name)
        assert value.std().item() == pytest.approx(0.88 * fan_in**-0.5, rel=0.05)
        assert value.abs().max() <= 2 * fan_in**-0.5
        assert getattr(bank, f"{name}_bias").abs().max() == 0


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_init_scale(kind):
    """Deviation sqrt(s / fan in), cut at two of them (0.8796 of it is left): the default's draws times sqrt(s)."""
    made = {}
    for scale in (1.0, 0.1):
        bank = ExpertBank(kind, num_experts=2, d_model=300, d_hidden=200, init_scale=scale)
        dense = FeedForward(kind, 300, 200, init_scale=scale)
        initialise(bank, 0)
        initialise(dense, 0)
        made[scale] = dict(bank.named_parameters())
        for name, parameter in bank.named_parameters():
            fan_in = 200 if name == "down" else 300
            assert parameter.std().item() == pytest.approx(0.8796 * (scale / fan_in) ** 0.5, rel=0.02)
            assert torch.equal(parameter[0], getattr(dense, name))
    for name, parameter in made[1.0].items():
        torch.testing.assert_close(made[0.1][name], parameter * 0.1**0.5)
    for build in (
        lambda: FeedForward("gelu", 8, 8, init_scale=0),
        lambda: ExpertBank(num_experts=2, d_model=8, d_hidden=8, init_scale=-1.0),
    ):
        with pytest.raises(ValueError, match="init_scale is"):
            build()


@pytest.mark.parametrize(("kind", "matrices"), [("relu", 2), ("gelu", 2), ("swiglu", 3), ("clamped_swiglu", 3)])
def test_row_cost(kind, matrices):
    bank, dense = make_bank(kind), FeedForward(kind, 8, 12)
    assert bank.row_cost.forward == matrices * 2 * 8 * 12
    assert bank.row_cost.training == 3 * bank.row_cost.forward
    assert dense.cost(5).training == 5 * bank.row_cost.training


def test_bad_arguments():
    with pytest.raises(ValueError, match="d_hidden is 0; it must be at least 1"):
        ExpertBank("gelu", num_experts=2, d_model=4, d_hidden=0)
    with pytest.raises(UsageError, match="unknown expert kind 'swigly'; did you mean 'swiglu'"):
        ExpertBank("swigly", num_experts=2, d_model=4, d_hidden=4)


def test_registered_kind_works_in_bank_and_dense():
    with only_for_now(KINDS):
        register_expert("tanh")(Kind(torch.tanh))
        bank, x = make_bank("tanh", experts=2), torch.randn(3, 8)
        out = bank.loop(x, torch.tensor([3, 0]))
    torch.testing.assert_close(out, torch.tanh(x @ bank.up[0]) @ bank.down[0])


def test_autocast_runs_the_experts_in_low_precision():
    """`grouped_mm` does not follow autocast by itself, so the bank has to cast."""
    bank, rows, count = make_bank(hidden=16, bias=True), torch.randn(6, 8), torch.tensor([2, 0, 1, 3])
    full = bank.loop(rows, count)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grouped, loop = bank.grouped(rows, count), bank.loop(rows, count)
    assert grouped.dtype == torch.bfloat16
    for out in (grouped, loop):
        assert not torch.equal(out.float(), full)
        torch.testing.assert_close(out.float(), full, atol=0.15, rtol=0.1)


def test_autocast_gives_every_kernel_the_same_type():
    bank, rows, count = make_bank(hidden=16), torch.randn(6, 8), torch.tensor([2, 0, 1, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bank.loop(rows, count).dtype == bank.grouped(rows, count).dtype
