"""The bank: the weights of all experts, and four ways to run rows through them.

Axes: T tokens, R rows, E experts, D features, H hidden width, N rows per expert (padded), r rank of a low-rank update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routelab.core.flops import Cost
from routelab.experts.feed_forward import (
    check_hidden,
    check_scale,
    check_sizes,
    draw,
    kind_named,
    parameter_shapes,
    products_cost,
    update_shapes,
)
from routelab.experts.kernels.fused_cpu_kernel import Layout, run_fused, usable
from routelab.routers.base import fresh

Kernel = Literal["auto", "fused", "grouped", "batched", "loop"]
KERNELS: tuple[str, ...] = ("auto", "fused", "grouped", "batched", "loop")

_FUSED_WORK = 2**31
"""Multiplications of a forward pass. torch's own threads go on spinning for some 5 ms after every product, in the way of the
fused kernel's; below this, that is more than a tenth of the time."""
_FUSED_ROWS = 256  # per expert, on one thread
_FEW_ROWS, _MOST_PADDING = 16, 3.0


class Product(Protocol):
    """Rows times each expert's own matrix called `name`, plus its vector called `bias`."""

    def __call__(self, value: Tensor, name: str, bias: str | None = None) -> Tensor: ...


class ExpertBank(nn.Module):
    """E feed-forwards of one kind and size.

    Parameters: `up` (E, D, H), `gate` (E, D, H) if the kind is gated, `down` (E, H, D); with `bias=True` also `up_bias`
    (E, H), `gate_bias` (E, H), `down_bias` (E, D). A kind without a hidden layer has `linear` (E, D, D) and `linear_bias`
    (E, D) instead, and takes no d_hidden. A bank with one expert computes what `FeedForward` does.

    rank: experts share one feed-forward, `up` (D, H), `gate` (D, H), `down` (H, D) and its biases, and each adds a product of
    its own to every matrix: `up_a` (E, D, r) times `up_b` (E, r, H), and so on (Hu et al. 2021, LoRA, with alpha = r). None:
    as the kind says, mostly experts of their own. The b start at 0: every expert starts as the dense feed-forward. The shared
    products are computed for every row, as `row_cost` charges them: what an expert makes of `down` depends on its `up`.
    init_scale: weights start at N(0, init_scale / fan in), see `routelab.experts.feed_forward.draw`.
    """

    def __init__(
        self,
        kind: str = "gelu",
        *,
        num_experts: int,
        d_model: int,
        d_hidden: int | None = None,
        bias: bool = False,
        init_scale: float = 1.0,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        check_scale(init_scale)
        self.init_scale = init_scale
        self.kind_name, self.kind = kind, kind_named(kind)
        check_hidden(kind, self.kind, d_hidden)
        check_sizes(num_experts=num_experts, d_model=d_model, d_hidden=1 if d_hidden is None else d_hidden)
        if rank is not None:
            self.kind = replace(self.kind, rank=rank)
        self.num_experts, self.d_model, self.d_hidden, self.bias = num_experts, d_model, d_hidden, bias
        whole = parameter_shapes(self.kind, d_model, d_hidden, bias)
        updates = update_shapes(self.kind, d_model, d_hidden)
        own = updates or whole
        self._shared = tuple(whole) if updates else ()
        for name, shape in {**whole, **own}.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(num_experts, *shape) if name in own else torch.zeros(shape)))
        self._widths = {width for shape in (*whole.values(), *own.values()) for width in shape}
        self._matrices = [shape for shape in {**whole, **own}.values() if len(shape) == 2]
        # On the meta device there is nothing to draw: an arm is only sized there.
        if not next(self.parameters()).is_meta:
            self.init_parameters(fresh)

    def init_parameters(self, generator: Callable[[str], torch.Generator]) -> None:
        """Every expert is drawn as a dense feed-forward is, by its own number: more experts change none of the first. What
        they share is drawn as the dense feed-forward."""
        for name, parameter in self.named_parameters(recurse=False):
            for expert, part in enumerate((parameter,) if name in self._shared else parameter.unbind(0)):
                draw(part, name, generator(f"{name}/{expert}"), self.init_scale)

    @property
    def row_cost(self) -> Cost:
        """FLOPs of one row through one expert."""
        return products_cost(self._matrices)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Those of which every expert has a part to itself, (E, ...); without a rank all of them."""
        return {name: value for name, value in self.named_parameters(recurse=False) if name not in self._shared}

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
        if self.bias and not self._shared:
            expert = torch.searchsorted(offs, torch.arange(total, device=rows.device, dtype=torch.int32), right=True)
            expert = expert.clamp_max(self.num_experts - 1)

        def product(value: Tensor, name: str, bias: str | None = None) -> Tensor:
            if valid is None or not (self.bias or self._shared):
                out = F.grouped_mm(value, getattr(self, name).to(value.dtype), offs=offs)
            else:
                # Gradients of biases and of shared matrices are sums over all rows, also over those that nothing defines.
                out = F.grouped_mm(torch.where(valid, value, 0.0), getattr(self, name).to(value.dtype), offs=offs)
                out = torch.where(valid, out, 0.0)
            return out if bias is None else out + getattr(self, bias).to(value.dtype)[expert]

        out = self._run(rows, product)
        return out if valid is None else torch.where(valid, out, 0.0)

    def batched(self, rows: Tensor) -> Tensor:
        """(E, N, D) -> (E, N, D), N rows for every expert."""

        def product(value: Tensor, name: str, bias: str | None = None) -> Tensor:
            weight = getattr(self, name).to(value.dtype)
            if bias is None:
                return torch.bmm(value, weight)
            return torch.baddbmm(getattr(self, bias).to(value.dtype).unsqueeze(1), value, weight)

        return self._run(rows, product)

    def loop(self, rows: Tensor, count: Tensor) -> Tensor:
        """As `grouped`, one expert after another with plain products: the oracle of the tests. Waits for the counts.

        The weights are taken apart by `unbind`: indexing `up[e]` would build a full-size gradient for every expert.
        """
        parts = {name: parameter.unbind(0) for name, parameter in self.own_parameters().items()}
        sizes = count.tolist()
        out = [
            self.one(part, {name: values[expert] for name, values in parts.items()})
            for expert, part in enumerate(rows[: sum(sizes)].split(sizes))
        ]
        return torch.cat([*out, out[0].new_zeros(rows.shape[0] - sum(sizes), rows.shape[1])])

    def one(self, rows: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Rows (R, D) through one expert, whose part of `own_parameters` is given by name -> (R, D), with plain products."""

        def product(value: Tensor, name: str, bias: str | None = None) -> Tensor:
            out = value @ own[name].to(value.dtype)
            return out if bias is None else out + own[bias].to(value.dtype)

        return self._run(rows, product)

    def _run(self, rows: Tensor, product: Product) -> Tensor:
        if torch.is_autocast_enabled(rows.device.type):
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))

        def project(value: Tensor, name: str) -> Tensor:
            bias = f"{name}_bias" if self.bias else None
            if not self._shared:
                return product(value, name, bias)
            whole = value @ getattr(self, name).to(value.dtype)
            whole = whole if bias is None else whole + getattr(self, bias).to(value.dtype)
            return whole + product(product(value, f"{name}_a"), f"{name}_b")

        return self.kind.run(rows, project)

    def fused(self, x: Tensor, weight_R: Tensor | None, layout: Layout) -> Tensor:
        """Tokens to rows, through the experts and back in one operation, or sorted rows alone: see `routelab.experts.kernels.fused_cpu_kernel`.

        Only where `kernel_for` may choose it: a CPU, float32 or float64 throughout, relu, gelu or silu between matrices that
        are each expert's own, no autocast.
        """
        return run_fused(self.kind, dict(self.named_parameters(recurse=False)), x, weight_R, layout)

    def can_fuse(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether `fused` can run here and now on rows of `dtype`."""
        return next(self.parameters()).dtype == dtype and usable(self.kind, device, dtype)

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
        aligned = all(width * size % 16 == 0 for width in self._widths)
        if device.type != "cpu":
            return "grouped" if aligned and dtype == torch.bfloat16 else "batched"
        grouped = aligned and dtype in (torch.float32, torch.bfloat16)
        several, fused = torch.get_num_threads() > 1, self.can_fuse(device, dtype)
        work = rows * self.row_cost.forward / 2
        if fused and (work >= _FUSED_WORK if several else self.kind.gated and rows >= _FUSED_ROWS * self.num_experts):
            return "fused"
        few = rows <= _FEW_ROWS * self.num_experts
        if few and (several or not grouped) and largest is not None and largest * self.num_experts <= _MOST_PADDING * rows:
            return "batched"
        if grouped:
            return "grouped"
        return "fused" if fused else "batched"
