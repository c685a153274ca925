"""The mixture layer against the dense feed-forward of equal FLOPs, and against other implementations.

    python benchmarks/layer.py [--threads 2] [--rounds 15] [--experts 8,32,128] [--tables choice,soft,others,scaling]
                               [--allocator keep|default] [--device cpu|cuda]

Forward and backward at 4096 tokens (8 sequences of 512), D 256, H 512, two experts per token, float32. A round visits every
layer of a table, each next to a dense run of its own, before or after it in turn, so that whatever else the machine does
falls on both. Printed are the median and the quartiles of those ratios (below 1 is faster than dense), and for alternatives
also the median of their time over routelab's in the same round. Gradients are dropped between passes, outside of the timed
part. `--allocator keep` (`routelab.experts.kernels.glibc_allocator`) holds for every layer of the process alike. A layer that takes over 2 s is run
in the first 3 rounds only. On a GPU everything runs under autocast to bfloat16, and a pass ends when the device has ended.

Alternatives that are not installed are left out with the reason. They are looked for where Python looks:

    pip install --no-deps --target DIR st-moe-pytorch soft-moe-pytorch colt5-attention einops beartype local-attention hyper-connections
    PYTHONPATH=DIR python benchmarks/layer.py

Axes: G groups, S positions, D features, H hidden width, E experts, k choices per token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from routelab.core.initialisation import initialise
from routelab.experts.feed_forward import FeedForward
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.kernels.glibc_allocator import keep_freed_memory
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.build import build_router

G, S, D, H, K = 8, 512, 256, 512, 2
SLOW_S, SLOW_ROUNDS = 2.0, 3


@dataclass
class Contender:
    """A layer and how to get its output. note: what must be known to read its number."""

    module: nn.Module
    call: Callable[[Tensor], Tensor]
    note: str = ""


def ours(router: str, experts: int, kind: str = "swiglu", *, bias: bool = False, **options: object) -> Contender:
    """A routelab layer without capacity."""
    made = build_router(router, d_model=D, num_experts=experts, **options)
    layer = MixtureLayer(made, ExpertBank(kind, num_experts=experts, d_model=D, d_hidden=H, bias=bias), capacity_factor=None)
    initialise(layer, 0)
    return Contender(layer, lambda x: layer(x)[0])


def dense(hidden: int, kind: str = "swiglu", *, bias: bool = False) -> Contender:
    """The feed-forward whose products cost as much as `hidden // H` experts per token."""
    layer = FeedForward(kind, D, hidden, bias)
    initialise(layer, 0)
    return Contender(layer, layer)


def mixtral(layer: MixtureLayer, implementation: str) -> Contender:
    """transformers' block with the weights of `layer`."""
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    bank = layer.experts
    config = MixtralConfig(
        hidden_size=D, intermediate_size=H, num_local_experts=bank.num_experts, num_experts_per_tok=K, router_jitter_noise=0.0
    )
    config._experts_implementation = implementation
    block = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        block.gate.weight.copy_(layer.router.weight)
        block.experts.gate_up_proj.copy_(torch.cat([bank.gate, bank.up], dim=2).transpose(1, 2))
        block.experts.down_proj.copy_(bank.down.transpose(1, 2))
    return Contender(block, block)


def st_moe(experts: int, capacity_factor: float) -> Contender:
    """st-moe-pytorch, whose experts are GEGLU with biases; hidden_mult 3 makes 512 of 256 * 3 * 2 / 3."""
    from st_moe_pytorch import MoE

    layer = MoE(dim=D, num_experts=experts, gating_top_n=K, expert_hidden_mult=3, capacity_factor_train=capacity_factor)
    rows = experts * max(4, int(S * capacity_factor / experts)) * G
    return Contender(layer, lambda x: layer(x).outputs, f"{rows} rows, GEGLU with bias, drops")


def soft_moe(experts: int) -> Contender:
    """soft-moe-pytorch with as many slots and the same kind of experts; it normalises x before mixing, which we do not."""
    from soft_moe_pytorch import SoftMoE

    layer = SoftMoE(D, num_experts=experts, num_slots=K * S // experts, expert_mult=H // D)
    return Contender(layer, layer, "with an RMSNorm of x")


def passed(contender: Contender, x: Tensor, gradient: Tensor, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one forward and backward pass."""
    contender.module.zero_grad(set_to_none=True)
    x.grad = None
    wait(x)
    started = clock()
    with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda):
        out = contender.call(x)
    out.backward(gradient.to(out.dtype))
    wait(x)
    return clock() - started


def wait(x: Tensor) -> None:
    """For the device of x."""
    if x.is_cuda:
        torch.cuda.synchronize()


def check_equal(first: Contender, second: Contender, x: Tensor, gradient: Tensor) -> None:
    """AssertionError unless outputs and gradients of x are equal."""
    results = []
    for contender in (first, second):
        contender.module.to(x.device).zero_grad(set_to_none=True)
        x.grad = None
        out = contender.call(x)
        out.backward(gradient)
        assert x.grad is not None
        results.append((out.detach(), x.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def compete(
    title: str, reference: Contender, contenders: dict[str, Contender], rounds: int, x: Tensor, gradient: Tensor
) -> None:
    """Print the quartiles of every contender's time over its neighbouring dense run, and over the first contender's."""
    for contender in (reference, *contenders.values()):
        contender.module.to(x.device)
    slow = {name: passed(contender, x, gradient) > SLOW_S for name, contender in contenders.items()}
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    references: list[float] = []
    for _ in range(2):
        passed(reference, x, gradient)
    for turn in range(rounds):
        names = list(contenders)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for name in names:
            contender = contenders[name]
            if slow[name] and turn >= SLOW_ROUNDS:
                continue
            before = passed(reference, x, gradient) if turn % 2 else 0.0
            took = passed(contender, x, gradient)
            beside = before or passed(reference, x, gradient)
            references.append(beside)
            seconds[name].append(took)
            ratios[name].append(took / beside)
            contender.module.zero_grad(set_to_none=True)
    print(f"{title}: dense {1e3 * statistics.median(references):.1f} ms", flush=True)
    first = next(iter(contenders))
    for name, values in ratios.items():
        low, middle, high = quartiles(values)
        beside_first = [a / b for a, b in zip(values, ratios[first], strict=False)]
        text = f"  {name:34s} {middle:6.2f}  [{low:.2f}, {high:.2f}]  {1e3 * statistics.median(seconds[name]):8.1f} ms"
        if name != first:
            text += f"   over {first} {quartiles(beside_first)[1]:.2f}"
        note = f"{contenders[name].note}" + (f", {len(values)} rounds" if slow[name] else "")
        print(f"{text}   {note}".rstrip(), flush=True)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def offered(contenders: dict[str, Contender], makers: dict[str, Callable[[], Contender]]) -> dict[str, Contender]:
    """Add what can be built; say why the rest cannot."""
    for name, make in makers.items():
        try:
            contenders[name] = make()
        except ImportError as error:
            print(f"  {name}: left out ({error})")
    return contenders


def choice(experts: int, rounds: int, x: Tensor, gradient: Tensor) -> None:
    """Token choice, k = 2, swiglu: Mixtral's function."""
    own = ours("topk", experts, top_k=K)
    others = offered(
        {},
        {
            "transformers Mixtral, grouped_mm": lambda: mixtral(own.module, "grouped_mm"),
            "transformers Mixtral, eager": lambda: mixtral(own.module, "eager"),
        },
    )
    for other in others.values():
        check_equal(own, other, x, gradient)
    others = offered(
        others,
        {
            "st-moe-pytorch, capacity 2": lambda: st_moe(experts, 2.0),
            "st-moe-pytorch, capacity 1.25": lambda: st_moe(experts, 1.25),
        },
    )
    compete(f"choice, E {experts}", dense(K * H), {"routelab topk": own} | others, rounds, x, gradient)


def soft(experts: int, rounds: int, x: Tensor, gradient: Tensor) -> None:
    """Soft MoE with two slots for every token, gelu with biases as in soft-moe-pytorch."""
    own = ours("soft", experts, "gelu", bias=True, slots_per_expert=K * S // experts)
    contenders = offered({"routelab soft": own}, {"soft-moe-pytorch": lambda: soft_moe(experts)})
    compete(f"soft, E {experts}", dense(K * H, "gelu", bias=True), contenders, rounds, x, gradient)


def others(experts: int, rounds: int, x: Tensor, gradient: Tensor) -> None:
    """Expert choice (two experts per token on average) and hash (one, against the dense layer of half the width)."""
    contenders = {"routelab expert_choice": ours("expert_choice", experts, capacity_factor=float(K))}
    compete(f"expert choice, E {experts}", dense(K * H), contenders, rounds, x, gradient)
    compete(f"hash, E {experts}", dense(H), {"routelab hash": ours("hash", experts)}, rounds, x, gradient)


def scaling(_: int, rounds: int, x: Tensor, gradient: Tensor) -> None:
    """Cost against the number of experts at the same active FLOPs."""
    contenders = {f"routelab topk, E {experts}": ours("topk", experts, top_k=K) for experts in (8, 16, 32, 64, 128, 256)}
    compete("scaling", dense(K * H), contenders, rounds, x, gradient)


TABLES = {"choice": choice, "soft": soft, "others": others, "scaling": scaling}


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--experts", default="8,32,128")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="keep: as in routelab's training loop")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    allocator = "keeps freed memory" if arguments.allocator == "keep" and keep_freed_memory() else "as it comes"
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(G, S, D, generator=generator).to(arguments.device).requires_grad_()
    gradient = torch.randn(G, S, D, generator=generator).to(arguments.device) / D
    print(
        f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads, {arguments.rounds} rounds, allocator {allocator}",
        flush=True,
    )
    for name in arguments.tables.split(","):
        for experts in [0] if name == "scaling" else map(int, arguments.experts.split(",")):
            TABLES[name](experts, arguments.rounds, x, gradient)


if __name__ == "__main__":
    main()
