"""Which kernel of the expert bank is fastest at which shape: forward and backward of a top-1 plan, side by side.

    python benchmarks/kernels.py [--threads 1] [--rounds 15] [--allocator keep|default]

Prints the median milliseconds of each kernel, what `ExpertBank.kernel_for` chooses, and the quartiles of its time over the
fastest kernel's. Kernels take turns within a round, and the ratio is taken within rounds: the machines this was written on
are shared and noisy. Which kernel is fastest is judged by the same rounds, so that a tie reads a little above 1.
"""

import argparse
import statistics
import time

import torch

from routelab.core.initialisation import initialise
from routelab.experts.dispatch import run
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.kernels.glibc_allocator import keep_freed_memory
from routelab.routers.plans import TopK

# rows, d_model, d_hidden, experts, kind
SHAPES = [
    (256, 64, 256, 8, "gelu"),
    (256, 64, 256, 64, "gelu"),
    (1024, 64, 256, 8, "gelu"),
    (1024, 64, 256, 64, "swiglu"),
    (4096, 64, 256, 8, "gelu"),
    (4096, 256, 512, 8, "gelu"),
    (4096, 256, 512, 32, "gelu"),
    (4096, 256, 512, 128, "gelu"),
    (8192, 256, 256, 32, "gelu"),
    (8192, 256, 512, 8, "swiglu"),
    (2048, 256, 512, 128, "swiglu"),
    (8192, 256, 512, 128, "swiglu"),
]
KERNELS = ("fused", "grouped", "batched", "loop")


def passed(bank: ExpertBank, x: torch.Tensor, plan: TopK, kernel: str) -> float:
    """Seconds of a forward and backward pass."""
    bank.zero_grad(set_to_none=True)
    x.grad = None
    started = time.perf_counter()
    out, _ = run(bank, x, plan, kernel)
    out.backward(x.detach())
    return time.perf_counter() - started


def main() -> None:
    """Print one line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="keep: as in routelab's training loop")
    arguments = parser.parse_args()
    allocator = "keeps freed memory" if arguments.allocator == "keep" and keep_freed_memory() else "as it comes"
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds, allocator {allocator}", flush=True
    )
    torch.manual_seed(0)
    for rows, d_model, d_hidden, experts, kind in SHAPES:
        bank = ExpertBank(kind, num_experts=experts, d_model=d_model, d_hidden=d_hidden)
        initialise(bank, 0)
        x = torch.randn(1, rows, d_model, requires_grad=True)
        plan = TopK(torch.randint(0, experts, (rows, 1)), torch.ones(rows, 1), experts)
        times: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
        for turn in range(arguments.rounds + 2):
            first = turn % len(KERNELS)
            for kernel in (*KERNELS[first:], *KERNELS[:first]):
                seconds = passed(bank, x, plan, kernel)
                if turn >= 2:
                    times[kernel].append(seconds)
        middle = {kernel: statistics.median(values) for kernel, values in times.items()}
        best = min(middle, key=middle.__getitem__)
        chosen = bank.kernel_for(rows, x.device, x.dtype, int(plan.expert.flatten().bincount().max()))
        ratios = [one / other for one, other in zip(times[chosen], times[best], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        shown = "  ".join(f"{kernel} {1e3 * value:7.2f}" for kernel, value in middle.items())
        print(
            f"R {rows:5d}  D {d_model:3d}  H {d_hidden:3d}  E {experts:3d}  {kind:6s}  {shown}  "
            f"chosen {chosen}: {median:.2f} [{low:.2f}, {high:.2f}] of {best}",
            flush=True,
        )


if __name__ == "__main__":
    main()
