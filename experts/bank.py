"""The bank: the weights of all experts, and four ways to run rows through them.

Axes: T tokens, R rows, E experts, D features, H hidden width, N rows per expert (padded).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experts.fused import Layout, run_fused, usable
from experts.kinds import KINDS, check_sizes, draw, parameter_shapes, row_cost
from routers.cost import Cost

Kernel = Literal["auto", "fused", "grouped", "batched", "loop"]
KERNELS: tuple[str, ...] = ("auto", "fused", "grouped", "batched", "loop")

_FUSED_WORK = 2**31
"""Multiplications of a forward pass. torch's own threads go on spinning for some 5 ms after every product, in the way of the
fused kernel's; below this, that is more than a tenth of the time."""
_FUSED_ROWS = 256  # per expert, on one thread
_FEW_ROWS, _MOST_PADDING = 16, 3.0


class ExpertBank(nn.Module):
    """E feed-forwards of one kind and size.

    Parameters: `up` (E, D, H), `gate` (E, D, H) if the kind is gated, `down` (E, H, D); with `bias=True` also `up_bias`
    (E, H), `gate_bias` (E, H), `down_bias` (E, D). A bank with one expert computes what `FeedForward` does.
    """

    def __init__(self, kind: str = "gelu", *, num_experts: int, d_model: int, d_hidden: int, bias: bool = False) -> None:
        super().__init__()
        check_sizes(num_experts=num_experts, d_model=d_model, d_hidden=d_hidden)
        self.kind_name, self.kind = kind, KINDS.get(kind)
        self.num_experts, self.d_model, self.d_hidden, self.bias = num_experts, d_model, d_hidden, bias
        for name, shape in parameter_shapes(self.kind, d_model, d_hidden, bias).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(num_experts, *shape)))

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Every expert is drawn as a dense feed-forward is, by its own number: more experts change none of the first."""
        for name, parameter in self.named_parameters(recurse=False):
            for expert, part in enumerate(parameter.unbind(0)):
                draw(part, name, generator(f"{name}/{expert}"))

    @property
    def row_cost(self) -> Cost:
        """FLOPs of one row through one expert."""
        return row_cost(self.kind, self.d_model, self.d_hidden)

    def grouped(self, rows: Tensor, count: Tensor) -> Tensor:
        """`rows` (R, D) sorted by expert, `count` (E,) rows of each -> (R, D). Rows past the counts come back as 0.

        `F.grouped_mm` on every device; it neither follows autocast nor defines rows past its last offset.
        """
        offs = count.cumsum(0).to(torch.int32)
        valid = None
        total = rows.shape[0]
        if rows.device.type != "cpu" or int(offs[-1]) != total:
            valid = (torch.arange(total, device=rows.device) < offs[-1]).unsqueeze(1)
            rows = torch.where(valid, rows, 0.0)
        expert = None
        if self.bias:
            expert = torch.searchsorted(offs, torch.arange(total, device=rows.device, dtype=torch.int32), right=True)
            expert = expert.clamp_max(self.num_experts - 1)

        def project(value: Tensor, name: str) -> Tensor:
            weight = getattr(self, name)
            product = F.grouped_mm(value, weight.to(value.dtype), offs=offs)
            if expert is not None:
                product = product + getattr(self, f"{name}_bias").to(value.dtype)[expert]
            return product

        out = self._run(rows, project)
        return out if valid is None else torch.where(valid, out, 0.0)

    def batched(self, rows: Tensor) -> Tensor:
        """(E, N, D) -> (E, N, D), N rows for every expert."""

        def project(value: Tensor, name: str) -> Tensor:
            weight = getattr(self, name).to(value.dtype)
            if not self.bias:
                return torch.bmm(value, weight)
            return torch.baddbmm(getattr(self, f"{name}_bias").to(value.dtype).unsqueeze(1), value, weight)

        return self._run(rows, project)

    def loop(self, rows: Tensor, count: Tensor) -> Tensor:
        """As `grouped`, one expert after another with plain products: the oracle of the tests. Waits for the counts.

        The weights are taken apart by `unbind`: indexing `up[e]` would build a full-size gradient for every expert.
        """
        parts = {name: parameter.unbind(0) for name, parameter in self.named_parameters(recurse=False)}
        sizes = count.tolist()
        out = []
        for expert, part in enumerate(rows[: sum(sizes)].split(sizes)):

            def project(value: Tensor, name: str, expert: int = expert) -> Tensor:
                product = value @ parts[name][expert].to(value.dtype)
                return product + parts[f"{name}_bias"][expert].to(value.dtype) if self.bias else product

            out.append(self._run(part, project))
        return torch.cat([*out, out[0].new_zeros(rows.shape[0] - sum(sizes), rows.shape[1])])

    def _run(self, rows: Tensor, project: Callable[[Tensor, str], Tensor]) -> Tensor:
        if torch.is_autocast_enabled(rows.device.type):
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))
        gate = project(rows, "gate") if self.kind.gated else None
        return project(self.kind.hidden(project(rows, "up"), gate), "down")

    def fused(self, x: Tensor, weight_R: Tensor | None, layout: Layout) -> Tensor:
        """Tokens to rows, through the experts and back in one operation, or sorted rows alone: see `experts.fused`.

        Only where `kernel_for` may choose it: a CPU, float32 or float64 throughout, relu, gelu or silu, no autocast.
        """
        return run_fused(self.kind, dict(self.named_parameters(recurse=False)), x, weight_R, layout)

    def can_fuse(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether `fused` can run here and now on rows of `dtype`."""
        return self.up.dtype == dtype and usable(self.kind, device, dtype)

    def kernel_for(self, rows: int, device: torch.device, dtype: torch.dtype, largest: int | None = None) -> Kernel:
        """The fastest kernel for `rows` rows sorted by expert, as measured by benchmarks/kernels.py.

        largest: rows of the busiest expert, which is what "batched" pads every expert to; None if unknown. A choice never
        depends on anything but shapes, types and the number of threads, so that a run repeats itself.

        On a CPU, `F.grouped_mm` is hard to beat on one thread; gated kinds with many rows gain 3 to 5% from fusing. On
        several threads, the fused kernel gives whole experts to threads where the others split every product, and wins where
        there is enough to do; with a handful of rows per expert, one batched product beats many small ones as long as the
        padding is bounded. `F.grouped_mm` wants strides in multiples of 16 bytes and no float64; on a GPU only bfloat16 is a
        real kernel.
        """
        size = torch.empty(0, dtype=dtype).element_size()
        aligned = all(width * size % 16 == 0 for width in (self.d_model, self.d_hidden))
        if device.type != "cpu":
            return "grouped" if aligned and dtype == torch.bfloat16 else "batched"
        grouped = aligned and dtype in (torch.float32, torch.bfloat16)
        several, fused = torch.get_num_threads() > 1, self.can_fuse(device, dtype)
        work = rows * self.d_model * self.d_hidden * self.kind.matrices
        if fused and (work >= _FUSED_WORK if several else self.kind.gated and rows >= _FUSED_ROWS * self.num_experts):
            return "fused"
        few = rows <= _FEW_ROWS * self.num_experts
        if few and (several or not grouped) and largest is not None and largest * self.num_experts <= _MOST_PADDING * rows:
            return "batched"
        if grouped:
            return "grouped"
        return "fused" if fused else "batched"
