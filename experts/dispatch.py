"""Dispatch: lay out the rows that a plan asks for, run them through a bank, and put the results back.

Axes: G groups, S positions, T = G * S tokens, D features, E experts, C tokens per expert and group, P slots per expert,
N assignments, R rows.

On a CPU, dropped assignments are left out before any work is done. On a GPU that would make the host wait for a count, so
they are sorted behind the last expert instead, where no product reads them. In float32 a GPU has no grouped product: rows are
padded to what capacity leaves an expert, and only where there is none does the host wait, for the busiest expert's count.
Under `torch.compile` the same is done on a CPU where capacity bounds the rows of an expert: then no shape hangs on the
routing, and a layer is one graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from routelab.experts.grouped_experts import ExpertBank, Kernel
from routelab.experts.kernels.fused_cpu_kernel import Layout, by_token
from routelab.routers.plans import Blend, PerExpert, Plan, Ragged, Slots, TopK, token_expert


def run(
    bank: ExpertBank, x_GSD: Tensor, plan: Plan, kernel: Kernel = "auto", most: int | None = None
) -> tuple[Tensor, Tensor | int]:
    """Run the experts on the tokens as `plan` says. (G, S, D) -> ((G, S, D), rows executed).

    kernel: "fused", "grouped", "batched" or "loop" for plans of flat choices; "auto" takes the fastest one for the shape, and
    "fused" that of the others where it cannot run. PerExpert, Slots and Blend are rectangular already and use "batched", the
    fastest for them, or "loop" (or, but for Blend, "fused") when asked. most: the most rows that an expert can have been left
    with, if that is known without looking.
    """
    if isinstance(plan, (TopK, Ragged)) and most is not None and torch.compiler.is_compiling():
        return _flat(bank, x_GSD, plan, "batched", most)
    if isinstance(plan, (TopK, Ragged)):
        return _flat_as_it_comes(bank, x_GSD, plan, kernel, None if x_GSD.device.type == "cpu" else most)
    if isinstance(plan, PerExpert):
        return _per_expert(bank, x_GSD, plan, kernel)
    if isinstance(plan, Slots):
        return _slots(bank, x_GSD, plan, kernel)
    return _blend(bank, x_GSD, plan, kernel)


@torch.compiler.disable
def _flat_as_it_comes(
    bank: ExpertBank, x_GSD: Tensor, plan: TopK | Ragged, kernel: Kernel, most: int | None
) -> tuple[Tensor, Tensor | int]:
    """Outside of graphs: sizes hang on the routing, and torch compiles no grouped product in float32."""
    return _flat(bank, x_GSD, plan, kernel, most)


def _resolved(bank: ExpertBank, x: Tensor, kernel: Kernel, rows: int, count: Tensor) -> Kernel:
    """The kernel to run: a choice for "auto", and for "fused" where it cannot run. count: rows of each expert."""
    if kernel not in ("auto", "fused") or (kernel == "fused" and _can_fuse(bank, x)):
        return kernel
    return bank.kernel_for(rows, x.device, _product_type(x), int(count.max()) if x.device.type == "cpu" else None)


def _can_fuse(bank: ExpertBank, x: Tensor) -> bool:
    return bank.can_fuse(x.device, _product_type(x))


def _product_type(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _flat(
    bank: ExpertBank, x_GSD: Tensor, plan: TopK | Ragged, kernel: Kernel, most: int | None = None
) -> tuple[Tensor, Tensor | int]:
    x_TD = x_GSD.flatten(0, 1)
    token_N, expert_N = token_expert(plan, x_GSD.shape[1])
    weight_N, keep_N = plan.weight.reshape(-1), None if plan.keep is None else plan.keep.reshape(-1)
    compact = x_TD.device.type == "cpu" and most is None
    if keep_N is None:
        order_R = torch.argsort(expert_N, stable=True)
    elif compact:
        kept = keep_N.nonzero().squeeze(1)
        order_R = kept[torch.argsort(expert_N[kept], stable=True)]
    else:
        expert_N = torch.where(keep_N, expert_N, bank.num_experts)
        order_R = torch.argsort(expert_N, stable=True)
    token_R, expert_R = token_N[order_R], expert_N[order_R]
    count = torch.zeros(bank.num_experts + 1, dtype=torch.int64, device=x_TD.device)
    count = count.index_add_(0, expert_R, torch.ones_like(expert_R))[: bank.num_experts]
    weight_R = weight_N.index_select(0, order_R)
    kernel = _resolved(bank, x_TD, kernel, token_R.numel(), count)
    if kernel == "fused" and plan.weight_on == "output":
        if isinstance(plan, TopK) and keep_N is None:
            tokens, k = plan.expert.shape
            row_R, start_T = _inverse(order_R), torch.arange(0, tokens * k, k)
        else:
            row_R, start_T = by_token(token_R, x_TD.shape[0])
        out_TD = bank.fused(x_TD, weight_R.to(x_TD.dtype), Layout(count.tolist(), token_R, row_R, start_T))
        return out_TD.view_as(x_GSD), token_R.numel()
    rows_RD = x_TD.index_select(0, token_R)
    weight_R1 = weight_R.unsqueeze(1)
    if plan.weight_on == "input":
        rows_RD = (rows_RD * weight_R1).to(x_TD.dtype)
    out_RD, executed = _grouped_rows(bank, rows_RD, expert_R, count, kernel, most)
    if plan.weight_on == "output":
        out_RD = out_RD * weight_R1
    if keep_N is not None and not compact:
        out_RD = torch.where((expert_R < bank.num_experts).unsqueeze(1), out_RD, 0.0)
    if isinstance(plan, TopK):
        # Back to (T, k) and a sum over k: unlike index_add_, the same bits on every run on a GPU.
        tokens, k = plan.expert.shape
        place = out_RD.new_zeros(tokens * k, out_RD.shape[1]).index_copy(0, order_R, out_RD)
        out_TD = place.view(tokens, k, -1).sum(1) if k > 1 else place
    else:
        out_TD = out_RD.new_zeros(x_TD.shape[0], out_RD.shape[1]).index_add(0, token_R, out_RD)
    return out_TD.to(x_GSD.dtype).view_as(x_GSD), executed


def _grouped_rows(
    bank: ExpertBank, rows_RD: Tensor, expert_R: Tensor, count: Tensor, kernel: Kernel, most: int | None
) -> tuple[Tensor, Tensor | int]:
    """Rows sorted by expert through the chosen kernel -> rows in the same order, and how many were computed."""
    device = rows_RD.device
    on_cpu = device.type == "cpu"
    if kernel == "fused":
        return bank.fused(rows_RD, None, Layout(count.tolist())), rows_RD.shape[0]
    if kernel == "grouped":
        return bank.grouped(rows_RD, count), rows_RD.shape[0] if on_cpu else count.sum()
    if kernel == "loop":
        return bank.loop(rows_RD, count), rows_RD.shape[0] if on_cpu else count.sum()
    places = max(1, int(count.max())) if most is None else most
    start = count.cumsum(0) - count
    real = expert_R < bank.num_experts
    slot = expert_R * places + torch.arange(rows_RD.shape[0], device=device) - start[expert_R.clamp_max(bank.num_experts - 1)]
    slot = torch.where(real, slot, bank.num_experts * places)
    padded = rows_RD.new_zeros(bank.num_experts * places + 1, rows_RD.shape[1]).index_copy(0, slot, rows_RD)
    out = bank.batched(padded[:-1].view(bank.num_experts, places, -1)).flatten(0, 1)
    return out.index_select(0, slot.clamp_max(bank.num_experts * places - 1)), bank.num_experts * places


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))


def rectangular(bank: ExpertBank, rows_ERD: Tensor, kernel: Kernel) -> Tensor:
    """Equally many rows for every expert, (E, R, D) -> (E, R, D), by one batched product unless `kernel` asks for another."""
    experts, each, width = rows_ERD.shape
    if kernel == "fused" and _can_fuse(bank, rows_ERD):
        return bank.fused(rows_ERD.reshape(-1, width), None, Layout([each] * experts)).view(experts, each, -1)
    if kernel == "loop":
        count = torch.full((experts,), each, device=rows_ERD.device)
        return bank.loop(rows_ERD.reshape(-1, width), count).view(experts, each, -1)
    return bank.batched(rows_ERD)


def _per_expert(bank: ExpertBank, x_GSD: Tensor, plan: PerExpert, kernel: Kernel) -> tuple[Tensor, int]:
    groups, positions, width = x_GSD.shape
    token, _ = token_expert(plan, positions)
    token_EGC = token.view_as(plan.position).transpose(0, 1).reshape(-1)
    weight = plan.weight if plan.keep is None else plan.weight * plan.keep
    weight_E = weight.transpose(0, 1).reshape(bank.num_experts, -1, 1)
    if kernel == "fused" and plan.weight_on == "output" and _can_fuse(bank, x_GSD):
        each = token_EGC.numel() // bank.num_experts
        layout = Layout([each] * bank.num_experts, token_EGC, *by_token(token_EGC, groups * positions))
        out_TD = bank.fused(x_GSD.flatten(0, 1), weight_E.flatten().to(x_GSD.dtype), layout)
        return out_TD.view_as(x_GSD), token_EGC.numel()
    rows = x_GSD.flatten(0, 1).index_select(0, token_EGC).view(bank.num_experts, -1, width)
    if plan.weight_on == "input":
        rows = (rows * weight_E).to(x_GSD.dtype)
    out = rectangular(bank, rows, kernel)
    if plan.weight_on == "output":
        out = out * weight_E
    elif plan.keep is not None:
        out = out * plan.keep.transpose(0, 1).reshape(bank.num_experts, -1, 1)
    total = out.new_zeros(groups * positions, width).index_add(0, token_EGC, out.flatten(0, 1))
    return total.to(x_GSD.dtype).view_as(x_GSD), token_EGC.numel()


def _slots(bank: ExpertBank, x_GSD: Tensor, plan: Slots, kernel: Kernel) -> tuple[Tensor, int]:
    groups, _, experts, places = plan.dispatch.shape
    dispatch_GSK, combine_GSK = plan.dispatch.flatten(2), plan.combine.flatten(2)
    rows = torch.bmm(dispatch_GSK.transpose(1, 2).to(x_GSD.dtype), x_GSD)
    rows_E = rows.view(groups, experts, places, -1).transpose(0, 1).reshape(experts, groups * places, -1)
    out = rectangular(bank, rows_E, kernel).view(experts, groups, places, -1).transpose(0, 1)
    if plan.keep is not None:
        out = out * plan.keep.unsqueeze(-1)
    out_GKD = out.reshape(groups, experts * places, -1)
    return torch.bmm(combine_GSK.to(out_GKD.dtype), out_GKD).to(x_GSD.dtype), groups * experts * places


def _blend(bank: ExpertBank, x_GSD: Tensor, plan: Blend, kernel: Kernel) -> tuple[Tensor, int]:
    if kernel == "fused":
        kernel = "batched"  # every expert reads the same rows; there is nothing to gather
    x_TD = x_GSD.flatten(0, 1)
    weight_ET1 = (plan.weight if plan.keep is None else plan.weight * plan.keep).t().unsqueeze(-1)
    rows = x_TD.expand(bank.num_experts, *x_TD.shape)
    if plan.weight_on == "input":
        out = rectangular(bank, (rows * weight_ET1).to(x_TD.dtype), kernel)
        total = (out if plan.keep is None else out * plan.keep.t().unsqueeze(-1)).sum(0)
    else:
        total = (rectangular(bank, rows, kernel) * weight_ET1).sum(0)
    return total.to(x_GSD.dtype).view_as(x_GSD), bank.num_experts * x_TD.shape[0]


def asked(plan: Plan, groups: int) -> int | Tensor:
    """Assignments that the plan holds and has not dropped; a tensor on a GPU, a number on a CPU."""
    if isinstance(plan, Slots):
        places = groups * plan.dispatch.shape[2] * plan.dispatch.shape[3]
        keep = plan.keep.expand(groups, *plan.dispatch.shape[2:]) if plan.keep is not None else None
    else:
        places, keep = plan.weight.numel(), plan.keep
    if keep is None:
        return places
    total = keep.sum()
    return total if total.device.type != "cpu" else int(total)
