"""Which kernel of the expert bank is fastest at which shape: forward and backward of sorted rows, side by side.

    python benchmarks/kernels.py [THREADS]

Prints milliseconds (median of 7) for each kernel, and what `ExpertBank.kernel_for` would choose. The machines this was
written on are shared and noisy: read the ratios within a line.
"""

import statistics
import sys
import time

import torch

from experts.bank import ExpertBank
from experts.dispatch import run
from experts.initialisation import initialise
from routers.plans import TopK

# tokens, d_model, d_hidden, experts
SHAPES = [
    (256, 64, 256, 8),
    (1024, 64, 256, 8),
    (4096, 64, 256, 8),
    (4096, 256, 512, 8),
    (4096, 256, 512, 32),
    (4096, 256, 512, 128),
    (256, 64, 256, 64),
]


def milliseconds(bank: ExpertBank, x: torch.Tensor, plan: TopK, kernel: str) -> float:
    """Median time of a forward and backward pass."""
    times = []
    for attempt in range(9):
        started = time.perf_counter()
        out, _ = run(bank, x, plan, kernel)
        out.square().sum().backward()
        if attempt >= 2:
            times.append(time.perf_counter() - started)
        bank.zero_grad(set_to_none=True)
        x.grad = None
    return statistics.median(times) * 1e3


def main() -> None:
    """Print one line for each shape."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    torch.manual_seed(0)
    for tokens, d_model, d_hidden, experts in SHAPES:
        bank = ExpertBank("gelu", num_experts=experts, d_model=d_model, d_hidden=d_hidden)
        initialise(bank, 0)
        x = torch.randn(1, tokens, d_model, requires_grad=True)
        plan = TopK(torch.randint(0, experts, (tokens, 1)), torch.ones(tokens, 1), experts)
        times = {kernel: milliseconds(bank, x, plan, kernel) for kernel in ("grouped", "batched", "loop")}
        chosen = bank.kernel_for(tokens, x.device, x.dtype)
        shown = "  ".join(f"{kernel} {value:7.2f}" for kernel, value in times.items())
        print(
            f"T {tokens:5d}  D {d_model:3d}  H {d_hidden:3d}  E {experts:3d}  {shown}  chosen {chosen}, "
            f"{times[chosen] / min(times.values()):.2f} of the best"
        )


if __name__ == "__main__":
    main()
