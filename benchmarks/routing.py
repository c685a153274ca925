"""Every router against `topk` at equal rows: selection alone, and the whole layer with its dispatch and expert products.

    python benchmarks/routing.py [--threads 2] [--rounds 11] [--experts 32] [--routers relu,top_p] [--tables layer,selection,scaling]
        [--positions 512]

Forward and backward at 4096 tokens (8 sequences of 512, or others of `--positions`),
D 256, H 512, swiglu, float32, without capacity. ROUTERS says under
which options a router runs how many rows per token; it stands beside `topk` with that k. What chooses by threshold (`relu`,
`top_p`) gets weights or a threshold that make 2 rows per token on these tokens. "Selection" is the router's forward, and the
backward from its plan's weights and its losses.

Every run stands next to one of `topk`, before or after it in turn, so that whatever else the machine does falls on both.
Printed are the median and the quartiles of those ratios. What takes over 2 s runs 3 rounds.
Where other processes want the cores, `--threads 1 --clock cpu` counts this process's own time.

Axes: G groups, S positions, D features, H hidden width, E experts, k choices per token.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
from layer import SLOW_ROUNDS, SLOW_S, Contender, D, G, H, S, passed, quartiles
from torch import Tensor, nn

from routelab.core.initialisation import initialise
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.kernels.glibc_allocator import keep_freed_memory
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Router, RouterInput
from routelab.routers.build import build_router
from routelab.routers.plans import Slots, rows_per_group
from routelab.routers.router_registry import ROUTERS as REGISTERED

VOCABULARY = 256


def two(**options: object) -> tuple[int, Callable[[int], dict[str, object]]]:
    """Two rows per token under these options."""
    return 2, lambda experts: options


ROUTERS: dict[str, tuple[int | None, Callable[[int], dict[str, object]]]] = {
    "base": (1, lambda experts: {}),
    "cosine": two(top_k=2),
    "deepseek": two(top_k=2),
    "deepseek_moe": two(top_k=2),
    "dense_gate": (None, lambda experts: {}),
    "expert_choice": two(capacity_factor=2.0),
    "gpt_oss": two(top_k=2),
    "hash": (1, lambda experts: {"vocab_size": VOCABULARY}),
    "hierarchical": two(top_k=2),
    "latent": two(top_k=2),
    "llama4": (1, lambda experts: {}),
    "mixture_of_depths": (2, lambda experts: {"capacity": 2 / experts}),
    "moe_plus_plus": two(top_k=2),
    "noisy_topk": two(top_k=2),
    "random": two(top_k=2),
    "relu": two(top_k=2),
    "sequence": two(top_k=2),
    "sinkhorn": (1, lambda experts: {}),
    "soft": (1, lambda experts: {}),
    "st_moe": two(second_policy="all"),
    "switch": (1, lambda experts: {}),
    "top2": two(second_policy="all"),
    "top_p": two(),
    "topk": two(top_k=2),
}
"""Rows per token (None: one for every expert), and the options that make them so, by the number of experts."""

TARGETS = {"sinkhorn": 3.0, "base": None, "soft": None, "dense_gate": None}
"""Where it is not 1.3; None: measured and stated. Soft's products with slots are FLOPs of its own."""


def layer_of(name: str, options: dict[str, object], experts: int, x: Tensor) -> MixtureLayer:
    """A layer without capacity, whose router chooses as many experts as ROUTERS says."""
    if name == "soft":
        options = {**options, "positions": x.shape[1]}
    router = build_router(name, d_model=D, num_experts=experts, **options)
    initialise(router, 0)
    layer = MixtureLayer(router, bank_of(experts), capacity_factor=None)
    with torch.no_grad():
        if name == "relu":
            # Tokens have a common part in their last feature; the quantile of the logits without it is taken off by it.
            logits = x.detach().flatten(0, 1)[:, :-1] @ router.weight[:, :-1].t()
            router.weight[:, -1] = -logits.flatten().quantile(1 - 2 / experts, interpolation="lower") / COMMON
        elif name == "top_p":
            router.weight.mul_(4)
            router.p = threshold(router, x)
    return layer


@functools.cache
def bank_of(experts: int) -> ExpertBank:
    """One bank for all layers with as many experts. Drawn at once: a start by parameter name takes longer than the rounds."""
    with torch.device("meta"):
        bank = ExpertBank("swiglu", num_experts=experts, d_model=D, d_hidden=H)
    bank = bank.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    return bank


COMMON = 3.0
"""Every token's last feature."""


def threshold(router: Router, x: Tensor) -> float:
    """The p at which two experts per token are taken on average."""
    low, high = 0.0, 1.0
    for _ in range(20):
        router.p = (low + high) / 2
        rows = router(RouterInput(x.detach())).plan.token.numel() / x[..., 0].numel()
        low, high = (router.p, high) if rows < 2 else (low, router.p)
    return (low + high) / 2


def whole(layer: MixtureLayer, ids: Tensor) -> Contender:
    """The layer, forward and backward."""
    return Contender(layer, lambda x: layer(x, ids)[0])


def selection(layer: MixtureLayer, ids: Tensor) -> Contender:
    """The router alone: something of the size of x, so that its backward starts as that of a layer."""
    router: nn.Module = layer.router

    def call(x: Tensor) -> Tensor:
        routing = router(RouterInput(x, ids))
        plan = routing.plan
        parts = [plan.dispatch, plan.combine] if isinstance(plan, Slots) else [plan.weight]
        total = sum((part.sum() for part in [*parts, *routing.losses.values()] if part.requires_grad), x.new_zeros(()))
        return total + 0 * x[0, 0, 0]

    return Contender(router, call)


Clock = Callable[[], float]


def beside(
    reference: Contender, contender: Contender, rounds: int, x: Tensor, gradient: Tensor, clock: Clock
) -> tuple[float, list[float]]:
    """Median seconds of the contender, and its times over the reference's, one before the other in turn."""
    slow = max(passed(each, x, gradient, clock) for each in (reference, contender)) > SLOW_S
    seconds, ratios = [], []
    for turn in range(min(rounds, SLOW_ROUNDS) if slow else rounds):
        pair = (reference, contender) if turn % 2 else (contender, reference)
        took = {id(each): passed(each, x, gradient, clock) for each in pair}
        seconds.append(took[id(contender)])
        ratios.append(took[id(contender)] / took[id(reference)])
    for each in (reference, contender):
        each.module.zero_grad(set_to_none=True)
    return statistics.median(seconds), ratios


Kind = Callable[[MixtureLayer, Tensor], Contender]


def compete(title: str, kind: Kind, names: list[str], experts: int, rounds: int, x: Tensor, ids: Tensor, clock: Clock) -> None:
    """Print every router's time over that of `topk` with the same rows."""
    gradient = gradient_of(x) if kind is whole else torch.ones(())
    print(f"{title}, E {experts}", flush=True)
    for name in names:
        k = ROUTERS[name][0] or experts
        reference = kind(topk(k, experts, x), ids)
        layer = layer_of(name, ROUTERS[name][1](experts), experts, x)
        with torch.no_grad():
            plan = layer.router(RouterInput(x, ids)).plan
        median, ratios = beside(reference, kind(layer, ids), rounds, x, gradient, clock)
        low, middle, high = quartiles(ratios)
        target = TARGETS.get(name, 1.3) if kind is whole else None
        note = "" if target is None else f"target {target}" + ("" if middle <= target else "  MISSED")
        print(f"  {name:18s} {rows_per_group(plan, x.shape[0]) / x.shape[1]:5.2f} rows/token {1e3 * median:8.1f} ms  over topk "
              f"{middle:5.2f}  [{low:.2f}, {high:.2f}]  {note}".rstrip(), flush=True)  # fmt: skip


def scaling(names: list[str], counts: list[int], rounds: int, x: Tensor, ids: Tensor, clock: Clock) -> None:
    """Whole layers with 8 to 256 experts at the same active FLOPs, over `topk` with the fewest of them and as many rows."""
    print(f"scaling: over topk at E {counts[0]:<4d}" + "".join(f"{count:8d}" for count in counts), flush=True)
    for name in names:
        k, options = ROUTERS[name]
        if k is None:
            continue  # it runs every expert, so that no number of them leaves its FLOPs as they are
        reference, medians = whole(topk(k, counts[0], x), ids), []
        for count in counts:
            contender = whole(layer_of(name, options(count), count, x), ids)
            medians.append(statistics.median(beside(reference, contender, rounds, x, gradient_of(x), clock)[1]))
        print(f"  {name:24s}" + "".join(f"{median:8.2f}" for median in medians), flush=True)


def topk(k: int, experts: int, x: Tensor) -> MixtureLayer:
    """The layer that others stand beside."""
    return layer_of("topk", {"top_k": k, "renormalize": k > 1}, experts, x)


def gradient_of(x: Tensor) -> Tensor:
    """What the backward of a whole layer starts from."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) / D


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--positions", type=int, default=S, help="tokens of a sequence; 4096 in all")
    parser.add_argument("--counts", default="8,16,32,64,128,256", help="experts of the scaling table")
    parser.add_argument("--routers", default=",".join(ROUTERS))
    parser.add_argument("--tables", default="layer,selection,scaling")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a busy machine, with --threads 1")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    missing = set(REGISTERED.names()) - set(ROUTERS)
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds, {arguments.clock} clock",
        flush=True,
    )
    if missing:
        print(f"not measured: {', '.join(sorted(missing))}")
    groups, positions = G * S // arguments.positions, arguments.positions
    x = torch.randn(groups, positions, D, generator=torch.Generator().manual_seed(0))
    x[..., -1] = COMMON
    x.requires_grad_()
    ids = torch.randint(0, VOCABULARY, (groups, positions), generator=torch.Generator().manual_seed(1))
    names = arguments.routers.split(",")
    for table in arguments.tables.split(","):
        if table == "scaling":
            scaling(names, [int(count) for count in arguments.counts.split(",")], arguments.rounds, x, ids, clock)
        else:
            kind = {"layer": whole, "selection": selection}[table]
            compete(table, kind, names, arguments.experts, arguments.rounds, x, ids, clock)


if __name__ == "__main__":
    main()
