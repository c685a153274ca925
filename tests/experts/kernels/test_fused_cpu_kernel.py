"""The fused kernel beyond what test_bank.py and test_dispatch.py ask of every kernel: blocks, threads, and where it may not run."""

import os
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from routelab.core.registry import only_for_now
from routelab.experts.dispatch import run
from routelab.experts.feed_forward import KINDS, Kind, register_expert
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.kernels import fused_cpu_kernel as fused
from routelab.experts.kernels import thread_pool as threads
from routelab.experts.kernels.glibc_allocator import keep_freed_memory
from routelab.routers.plans import PerExpert, Slots, TopK

D, H, E = 8, 12, 5


@pytest.fixture(params=[1, 2, 3])
def thread_count(request, monkeypatch):
    """Small blocks, so that few rows make many of them, and expert sizes fall on, before and after their borders."""
    monkeypatch.setattr(fused, "_BLOCK_ROWS", 4)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_bank(kind="swiglu", bias=True, dtype=torch.float32, experts=E):
    bank = ExpertBank(kind, num_experts=experts, d_model=D, d_hidden=H, bias=bias).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return bank


def make_plan(tokens=40, k=2, drops=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    expert = torch.rand(tokens, E, generator=generator).topk(k, -1).indices
    keep = torch.rand(tokens, k, generator=generator) < 0.7 if drops else None
    return TopK(expert, torch.rand(tokens, k, generator=generator, dtype=torch.float64).to(dtype), E, keep)


def results(bank, x, plan, kernel, field="weight"):
    x, value = x.clone().requires_grad_(), getattr(plan, field).clone().requires_grad_()
    bank.zero_grad()
    out, _ = run(bank, x, replace(plan, **{field: value}), kernel)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return [out.detach(), x.grad, value.grad, *(parameter.grad.clone() for parameter in bank.parameters())]


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("kind", ["relu", "gelu", "swiglu"])
def test_blocks_and_threads_change_nothing(thread_count, kind, drops):
    bank, x, plan = make_bank(kind), torch.randn(2, 20, D, generator=torch.Generator().manual_seed(2)), make_plan(drops=drops)
    for got, expected in zip(results(bank, x, plan, "fused"), results(bank, x, plan, "loop"), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_rectangular_plans_through_blocks_and_threads(thread_count):
    generator = torch.Generator().manual_seed(3)
    bank, x = make_bank("gelu"), torch.randn(2, 20, D, generator=generator)
    position = torch.rand(2, E, 20, generator=generator).argsort(-1)[..., :7]
    per_expert = PerExpert(position, torch.rand(2, E, 7, generator=generator), E)
    slots = Slots(torch.rand(2, 20, E, 3, generator=generator), torch.rand(2, 20, E, 3, generator=generator), E)
    for plan, field in ((per_expert, "weight"), (slots, "combine")):
        for got, expected in zip(results(bank, x, plan, "fused", field), results(bank, x, plan, "loop", field), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_gradcheck_with_threads(thread_count):
    """Against finite differences, in the caller's float64, with an expert that has no row."""
    bank, plan = make_bank(dtype=torch.float64), make_plan(6, 1, dtype=torch.float64)
    plan = replace(plan, expert=plan.expert.clamp_max(3))
    x = torch.randn(1, 6, D, dtype=torch.float64, requires_grad=True)
    weight = plan.weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: run(bank, x, replace(plan, weight=weight), "fused")[0], (x, weight))


def test_the_same_bits_every_time(thread_count):
    """Whichever thread takes a block."""
    bank, x, plan = make_bank(), torch.randn(2, 20, D), make_plan()
    first = results(bank, x, plan, "fused")
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(first, results(bank, x, plan, "fused"), strict=True))


def test_weights_at_rest_get_no_gradient():
    """Frozen parameters, and an input that needs none."""
    bank, x, plan = make_bank(), torch.randn(2, 20, D), make_plan()
    whole = dict(zip(("out", "x", "weight", *dict(bank.named_parameters())), results(bank, x, plan, "fused"), strict=True))
    bank.up.requires_grad_(False)
    bank.down_bias.requires_grad_(False)
    bank.zero_grad()
    out, _ = run(bank, x, plan, "fused")
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert bank.up.grad is None
    assert bank.down_bias.grad is None
    for name in ("gate", "down", "up_bias", "gate_bias"):
        torch.testing.assert_close(getattr(bank, name).grad, whole[name])


def test_without_gradients_nothing_is_kept():
    bank, x, plan = make_bank(), torch.randn(2, 20, D), make_plan()
    expected = run(bank, x, plan, "loop")[0]
    with torch.no_grad():
        out = run(bank, x, plan, "fused")[0]
    assert out.grad_fn is None
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(run(bank, x, plan, "fused")[0], expected, atol=1e-5, rtol=1e-4)


def test_inference_mode_reaches_the_threads(thread_count):
    """Buffers made in it may not be written by a thread outside of it."""
    bank, x, plan = make_bank(), torch.randn(2, 20, D), make_plan()
    expected = run(bank, x, plan, "loop")[0]
    with torch.inference_mode():
        torch.testing.assert_close(run(bank, x, plan, "fused")[0], expected, atol=1e-5, rtol=1e-4)


def test_twice_differentiating_is_refused():
    """With an error that names the way out: a gradient without its graph would drop a term from someone's loss."""
    bank, x, plan = make_bank(), torch.randn(2, 20, D, requires_grad=True), make_plan()
    with pytest.raises(RuntimeError, match='use kernel="loop"'):
        torch.autograd.grad(run(bank, x, plan, "fused")[0].sum(), x, create_graph=True)
    (gradient,) = torch.autograd.grad(run(bank, x, plan, "loop")[0].sum(), x, create_graph=True)
    gradient.square().sum().backward()


@pytest.fixture
def spy(monkeypatch):
    """Calls of the fused kernel."""
    calls = []
    original = ExpertBank.fused
    monkeypatch.setattr(ExpertBank, "fused", lambda *given: (calls.append(given), original(*given))[1])
    return calls


def test_where_it_cannot_run_another_kernel_does(spy):
    """Autocast, mixed types, a plugin's activation and torch.func; asked for by name or not."""
    bank, x, plan = make_bank(), torch.randn(2, 20, D), make_plan()
    run(bank, x, plan, "fused")
    assert len(spy) == 1, "the spy sees it"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(bank, x, plan, "fused")[0].dtype == torch.float32
    run(bank, x.bfloat16(), plan, "fused")
    with only_for_now(KINDS):
        register_expert("tanh")(Kind(torch.tanh))
        plugin = make_bank("tanh")
        run(plugin, x, plan, "fused")
    gradient = torch.func.grad(lambda value: run(bank, value, plan, "fused")[0].sum())(x)
    assert len(spy) == 1
    torch.testing.assert_close(gradient, torch.func.grad(lambda value: run(bank, value, plan, "loop")[0].sum())(x))


def test_a_gated_plugin_of_a_known_activation_is_fused(spy):
    with only_for_now(KINDS):
        register_expert("geglu")(Kind(torch.nn.functional.gelu, gated=True))
        bank, x, plan = make_bank("geglu"), torch.randn(2, 20, D), make_plan()
        for got, expected in zip(results(bank, x, plan, "fused"), results(bank, x, plan, "loop"), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert spy


def test_compiles_through_another_kernel(spy):
    """In float64: the products are then plain ones, which compile; "eager" needs no compiler on this machine."""
    bank, x, plan = make_bank(dtype=torch.float64), torch.randn(2, 20, D, dtype=torch.float64), make_plan(dtype=torch.float64)
    compiled = torch.compile(lambda value: run(bank, value, plan, "auto")[0], backend="eager")
    torch.testing.assert_close(compiled(x), run(bank, x, plan, "loop")[0])
    assert not spy


@pytest.mark.parametrize("count", [1, 2])
def test_counters_see_the_products_whatever_the_threads(count, monkeypatch):
    """FlopCounterMode and the profiler watch only the thread that started them."""
    monkeypatch.setattr(fused, "_BLOCK_ROWS", 4)
    bank, x, plan = make_bank(bias=False), torch.randn(2, 20, D, requires_grad=True), make_plan()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with FlopCounterMode(display=False) as counter:
            run(bank, x, plan, "fused")[0].sum().backward()
        assert counter.get_total_flops() == 3 * 3 * 2 * 80 * D * H
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run(bank, x, plan, "fused")
        assert sum(event.count for event in seen.key_averages() if event.key == "aten::mm") == 3 * E
    finally:
        torch.set_num_threads(before)


def test_threads_leave_torch_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen = []
        threads.share_out(range(50), lambda: lambda piece: seen.append((piece, torch.get_num_threads())), 3)
        assert sorted(piece for piece, _ in seen) == list(range(50))
        assert {count for _, count in seen} == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_is_raised_here():
    def worker():
        def work(piece):
            if piece == 3:
                raise ArithmeticError("three")

        return work

    with pytest.raises(ArithmeticError, match="three"):
        threads.share_out(range(50), worker, 2)
    threads.share_out(range(50), lambda: lambda piece: None, 2)  # and the threads are still good


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_threads_after_a_fork():
    """A forked data loader has none of its parent's threads."""
    threads.share_out(range(4), lambda: lambda piece: None, 2)
    child = os.fork()
    if child == 0:
        seen = []
        threads.share_out(range(4), lambda: seen.append, 2)
        os._exit(0 if sorted(seen) == [0, 1, 2, 3] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_keep_freed_memory_says_what_it_did():
    """True on Linux with glibc, where large tensors then come from the heap and cost no page faults the second time."""
    resource = pytest.importorskip("resource")
    if not keep_freed_memory():
        pytest.skip("another allocator")

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # An aligned allocation needs a few bytes more than the last one left, so the heap may grow several times first.
    assert min(faults() for _ in range(20)) < 1000, "64 MiB are 16384 pages"
