"""The fused kernel: gather, experts and combine as one operation with a hand-written backward pass, for CPUs.

Axes: T tokens, R rows sorted by expert, E experts, D features, H hidden width, B rows of one block.

What it saves over the kernels of the bank, on a CPU where memory costs as much as arithmetic: the experts run in blocks of
some hundred rows, so that a row's hidden activations are still in the cache when the next product wants them; products are
written where their results belong; only the pre-activations are kept for the backward pass; the weighted sum over a
token's experts reads every row once, and its gradients need no scaled copy of the rows. Nothing is recomputed but
activations: three products forward (two without gate), six (four) backward, as everywhere.

It knows the three activations that have a derivative of their own in torch; other kinds, low-rank updates, autocast, `torch.compile`,
`torch.func` and GPUs take the kernels of the bank. It cannot be differentiated twice; `kernel="loop"` can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.experts.feed_forward import Kind
from routelab.experts.kernels.thread_pool import share_out, useful_threads

_BLOCK_ROWS = 512
"""The five buffers of a block are 4 MB in float32 at H = 512, which a last-level cache holds; 128 to 512 rows are equally fast."""

_UNEVEN = 1.2
"""The busiest thread's rows over the mean, above which torch had better split every product."""

NAMES = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")


@dataclass(frozen=True)
class Activation:
    """An activation and its derivative, both written into `out`. backward(gradient, x, out)."""

    forward: Callable[[Tensor, Tensor], Any]
    backward: Callable[[Tensor, Tensor, Tensor], Any]


_aten = torch.ops.aten
ACTIVATIONS: dict[Any, Activation] = {
    F.relu: Activation(
        lambda x, out: torch.clamp_min(x, 0, out=out),
        lambda gradient, x, out: _aten.threshold_backward.grad_input(gradient, x, 0, grad_input=out),
    ),
    F.gelu: Activation(
        lambda x, out: _aten.gelu.out(x, out=out),
        lambda gradient, x, out: _aten.gelu_backward.grad_input(gradient, x, grad_input=out),
    ),
    F.silu: Activation(
        lambda x, out: _aten.silu.out(x, out=out),
        lambda gradient, x, out: _aten.silu_backward.grad_input(gradient, x, grad_input=out),
    ),
}


@dataclass(frozen=True)
class Layout:
    """Where rows come from and where they go.

    sizes: rows of each expert, in order. token_R: each row's token; None: the rows are given, and returned, as they are.
    row_R and start_T: the rows in the order of their tokens, and where each token's begin.
    """

    sizes: list[int]
    token_R: Tensor | None = None
    row_R: Tensor | None = None
    start_T: Tensor | None = None


def by_token(token_R: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """`row_R` and `start_T` of a layout."""
    start_T = torch.bincount(token_R, minlength=tokens).cumsum(0)
    return torch.argsort(token_R, stable=True), torch.cat([start_T.new_zeros(1), start_T[:-1]])


def usable(kind: Kind, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel can run here and now; the experts' parameters are taken to have `dtype` too."""
    return (
        device.type == "cpu"
        and dtype in (torch.float32, torch.float64)
        and kind.activation in ACTIVATIONS
        and kind.lift is None
        and kind.rank is None
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def run_fused(kind: Kind, parameters: dict[str, Tensor], x: Tensor, weight_R: Tensor | None, layout: Layout) -> Tensor:
    """Rows of `x` through the experts and back: (T, D) -> (T, D), or (R, D) -> (R, D) for a layout without tokens.

    parameters: by the names of the bank. weight_R: what each row counts in its token's sum; None for 1.
    """
    given = [parameters.get(name) for name in NAMES]
    return _Fused.apply(kind, layout, torch.is_grad_enabled(), x, weight_R, *given)


@dataclass(frozen=True)
class _Block:
    """Neighbouring experts and their rows."""

    experts: slice
    here: slice
    sizes: list[int]

    @property
    def rows(self) -> int:
        return self.here.stop - self.here.start

    def of(self, whole: Tensor | None, room: Tensor | None) -> Tensor:
        """The block's rows of a buffer for all of them, or the beginning of one that has room for one block."""
        if room is not None:
            return room[: self.rows]
        assert whole is not None
        return whole[self.here]

    def part(self, parameter: Any) -> Any:
        """The block's experts of a parameter that may be None."""
        return None if parameter is None else parameter[self.experts]


def _blocks(sizes: list[int]) -> list[_Block]:
    """Experts in order, taken together until a block has enough rows, and the largest block first.

    Small enough that the threads can share them evenly: whoever is free takes the next one.
    """
    enough = min(_BLOCK_ROWS, sum(sizes) // (8 * torch.get_num_threads()))
    blocks, first, start, end = [], 0, 0, 0
    for last, size in enumerate(sizes, start=1):
        end += size
        if end - start >= enough or last == len(sizes):
            blocks.append(_Block(slice(first, last), slice(start, end), sizes[first:last]))
            first, start = last, end
    return sorted(blocks, key=lambda block: -block.rows)


def _threads(blocks: list[_Block]) -> int:
    """Threads to share the blocks among; 1, which leaves it to torch to split each product, where they cannot share evenly."""
    threads = useful_threads()
    loads = [0] * threads
    for block in blocks:
        loads[loads.index(min(loads))] += block.rows
    return threads if max(loads) * threads <= _UNEVEN * sum(loads) else 1


def _sum_rows(rows_RD: Tensor, weight_R: Tensor | None, layout: Layout) -> Tensor:
    """Each token's rows, weighted and summed: (R, D) -> (T, D)."""
    assert layout.row_R is not None
    weights = None if weight_R is None else weight_R.index_select(0, layout.row_R)
    return F.embedding_bag(layout.row_R, rows_RD, layout.start_T, mode="sum", per_sample_weights=weights)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        layout: Layout,
        saving: bool,
        x: Tensor,
        weight_R: Tensor | None,
        up: Tensor,
        gate: Tensor | None,
        down: Tensor,
        up_bias: Tensor | None,
        gate_bias: Tensor | None,
        down_bias: Tensor | None,
    ) -> Tensor:
        total, hidden, act = sum(layout.sizes), up.shape[2], ACTIVATIONS[kind.activation].forward
        blocks = _blocks(layout.sizes)
        widest = max(block.rows for block in blocks)
        out_R = x.new_empty(total, down.shape[2])
        rows_R, up_R, gate_R, inner_R = x, None, None, None
        if saving:
            # Without a gate the hidden activation itself is kept; with one, it is cheaper to make again than to keep.
            up_R = x.new_empty(total, hidden)
            gate_R, inner_R = (None, x.new_empty(total, hidden)) if gate is None else (x.new_empty(total, hidden), None)
            rows_R = x if layout.token_R is None else x.new_empty(total, x.shape[1])

        def worker() -> Callable[[_Block], None]:
            inner_B = None if inner_R is not None else x.new_empty(widest, hidden)
            # What the backward pass will want is kept; without one, a block's worth of room is enough.
            up_B = None if saving else x.new_empty(widest, hidden)
            gate_B = None if saving or gate is None else x.new_empty(widest, hidden)
            rows_B = None if saving or layout.token_R is None else x.new_empty(widest, x.shape[1])

            def work(block: _Block) -> None:
                rows = block.of(rows_R, rows_B)
                if layout.token_R is not None:
                    torch.index_select(x, 0, layout.token_R[block.here], out=rows)
                inner, pre_up = block.of(inner_R, inner_B), block.of(up_R, up_B)
                _products(rows, block.part(up), block.part(up_bias), block.sizes, pre_up)
                if gate is None:
                    act(pre_up, inner)
                else:
                    pre_gate = block.of(gate_R, gate_B)
                    _products(rows, block.part(gate), block.part(gate_bias), block.sizes, pre_gate)
                    act(pre_gate, inner)
                    inner.mul_(pre_up)
                _products(inner, block.part(down), block.part(down_bias), block.sizes, out_R[block.here])

            return work

        share_out(blocks, worker, _threads(blocks))
        ctx.kind, ctx.layout = kind, layout
        if saving:
            wanted = out_R if weight_R is not None and ctx.needs_input_grad[4] else None
            ctx.save_for_backward(rows_R, up_R, gate_R, inner_R, wanted, weight_R, up, gate, down)
        return out_R if layout.token_R is None else _sum_rows(out_R, weight_R, layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # `once_differentiable` would let it pass where the incoming gradient is a constant, and lose a term in silence.
            raise RuntimeError('the fused kernel has no second derivative (create_graph=True); use kernel="loop"')
        rows_R, up_R, gate_R, inner_R, out_R, weight_R, up, gate, down = ctx.saved_tensors
        layout, act = ctx.layout, ACTIVATIONS[ctx.kind.activation]
        needs = dict(zip(("x", "weight", *NAMES), ctx.needs_input_grad[3:], strict=True))
        total, hidden, width = rows_R.shape[0], up.shape[2], down.shape[2]
        blocks = _blocks(layout.sizes)
        widest = max(block.rows for block in blocks)
        made: dict[str, Tensor] = {}
        for name, like in (("up", up), ("gate", gate), ("down", down)):
            if needs[name]:
                made[name] = torch.empty_like(like, memory_format=torch.contiguous_format)
            if needs[f"{name}_bias"]:
                made[f"{name}_bias"] = like.new_empty(like.shape[0], like.shape[2])
        grad_x_R = rows_R.new_empty(rows_R.shape) if needs["x"] else None
        grad_weight_R = weight_R.new_empty(total) if needs["weight"] else None

        def worker() -> Callable[[_Block], None]:
            first_BH, second_BH, third_BH = (rows_R.new_empty(widest, hidden) for _ in range(3))
            gathered_BD, product_BD = (rows_R.new_empty(widest, width) for _ in range(2))

            def work(block: _Block) -> None:
                here, sizes = block.here, block.sizes

                def weights(rows: Tensor, grad: Tensor, name: str) -> None:
                    bias = made.get(f"{name}_bias")
                    _weight_gradients(rows, grad, sizes, block.part(made.get(name)), block.part(bias))

                if layout.token_R is None:
                    grad_out = gradient[here]
                else:
                    grad_out = gathered_BD[: block.rows]
                    torch.index_select(gradient, 0, layout.token_R[here], out=grad_out)
                    if grad_weight_R is not None:
                        product = product_BD[: block.rows]
                        torch.sum(torch.mul(grad_out, out_R[here], out=product), 1, out=grad_weight_R[here])
                    if weight_R is not None:
                        grad_out.mul_(weight_R[here].unsqueeze(1))
                rows, pre_up = rows_R[here], up_R[here]
                acted, inner, grad_inner = first_BH[: block.rows], second_BH[: block.rows], third_BH[: block.rows]
                _products(grad_out, block.part(down).transpose(1, 2), None, sizes, grad_inner)
                if gate is None:
                    weights(inner_R[here], grad_out, "down")
                    grad_up = acted
                    act.backward(grad_inner, pre_up, grad_up)
                else:
                    pre_gate = gate_R[here]
                    act.forward(pre_gate, acted)
                    torch.mul(acted, pre_up, out=inner)
                    weights(inner, grad_out, "down")
                    grad_up, grad_gate = acted.mul_(grad_inner), inner
                    act.backward(grad_inner.mul_(pre_up), pre_gate, grad_gate)
                    weights(rows, grad_gate, "gate")
                weights(rows, grad_up, "up")
                if grad_x_R is not None:
                    grad_rows = grad_x_R[here]
                    _products(grad_up, block.part(up).transpose(1, 2), None, sizes, grad_rows)
                    if gate is not None:
                        _products(grad_gate, block.part(gate).transpose(1, 2), None, sizes, grad_rows, add=True)

            return work

        share_out(blocks, worker, _threads(blocks))
        grad_x = grad_x_R
        if grad_x_R is not None and layout.token_R is not None:
            grad_x = _sum_rows(grad_x_R, None, layout)
        return (None, None, None, grad_x, grad_weight_R, *(made.get(name) for name in NAMES))


def _products(rows: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int], out: Tensor, *, add: bool = False) -> None:
    """Every expert's rows times its matrix, plus its bias, or plus what `out` holds, into `out`."""
    biases = bias.unbind(0) if bias is not None else None
    targets = out.split(sizes)
    for expert, (part, matrix, target) in enumerate(zip(rows.split(sizes), weight.unbind(0), targets, strict=True)):
        if sizes[expert] == 0:
            continue
        if add:
            torch.addmm(target, part, matrix, out=target)
        elif biases is not None:
            torch.addmm(biases[expert], part, matrix, out=target)
        else:
            torch.mm(part, matrix, out=target)


def _weight_gradients(rows: Tensor, gradient: Tensor, sizes: list[int], out: Tensor | None, out_bias: Tensor | None) -> None:
    """Every expert's rows^T times its gradient, and the gradient's sum for the bias; 0 for experts without rows."""
    parts = gradient.split(sizes)
    if out is not None:
        for size, part, grad, target in zip(sizes, rows.split(sizes), parts, out.unbind(0), strict=True):
            if size:
                torch.mm(part.t(), grad, out=target)
            else:
                target.zero_()
    if out_bias is not None:
        for part, target in zip(parts, out_bias.unbind(0), strict=True):
            torch.sum(part, 0, out=target)
