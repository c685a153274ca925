"""The blocks of mixture-of-experts, st-moe-pytorch and soft-moe-pytorch, each imported only when its block is built.

Axes: G groups, S positions, T = G * S tokens, D features, H hidden width, E experts, k choices, P slots per expert.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn

from routelab.parity.differences import Losses, Twin
from routelab.parity.reference_case import Sizes, draw, layer_of, losses_by_group, of_room
from routelab.parity.weight_mapping import same, turned, two_layers


def room_of(factor: float, sizes: Sizes) -> int:
    """Rows per expert and sequence in the Mesh-TensorFlow dialect, which leaves k out, rounds down, and keeps at least 4."""
    return max(min(sizes.positions, int(sizes.positions * factor / sizes.experts)), 4)


def gshard(sizes: Sizes, generator: torch.Generator, *, factor: float | None = None, policy: str = "all") -> Twin:
    """`mixture_of_experts.MoE`. factor: its capacity factor; policy: whether second choices are kept at random.

    Its threshold .5 keeps a second choice where U < 2 g2, as GShard does. It draws in evaluation too, where ours does not.
    """
    module = importlib.import_module("mixture_of_experts")
    capacity = float(sizes.experts) if factor is None else factor
    block = draw(
        module.MoE(
            sizes.width, num_experts=sizes.experts, hidden_dim=sizes.hidden, loss_coef=1.0,
            second_policy_train=policy, second_policy_eval="all", second_threshold_train=0.5,
            capacity_factor_train=capacity, capacity_factor_eval=capacity,
        ), sizes, generator,
    )  # fmt: skip
    room = None if factor is None else room_of(factor, sizes)
    layer = layer_of("top2", sizes, "relu", layer=of_room(sizes, room, 2), second_policy=policy)
    layout = {"router.weight": turned("gate.w_gating"), "experts.up": same("experts.w1"), "experts.down": same("experts.w2")}

    def theirs(x: Tensor) -> tuple[Tensor, Losses]:
        out, loss = block(x)
        return out, {"balance": loss}

    return Twin(block, layer, layout, theirs, losses_by_group(layer))


def st_moe(sizes: Sizes, generator: torch.Generator, *, factor: float | None = None) -> Twin:
    """`st_moe_pytorch.MoE` with experts of two biased layers, threshold 0 (second choices always kept).

    Without its straight-through dispatch, whose extra gradient to the gate is not in the paper. Its losses are of training, and
    its balance loss is compared without capacity only: it is taken after the tokens that do not fit are dropped, where the
    paper counts them.
    """
    module = importlib.import_module("st_moe_pytorch")
    capacity = float(sizes.experts) if factor is None else factor
    experts = nn.ModuleList(
        nn.Sequential(nn.Linear(sizes.width, sizes.hidden), nn.GELU(), nn.Linear(sizes.hidden, sizes.width))
        for _ in range(sizes.experts)
    )
    block = draw(
        module.MoE(
            dim=sizes.width, num_experts=sizes.experts, experts=experts, straight_through_dispatch_tensor=False,
            threshold_train=0.0, threshold_eval=0.0, capacity_factor_train=capacity, capacity_factor_eval=capacity,
        ), sizes, generator,
    )  # fmt: skip
    room = None if factor is None else room_of(factor, sizes)
    layer = layer_of("st_moe", sizes, "gelu", bias=True, layer=of_room(sizes, room, 2), second_policy="all")
    layout = {"router.weight": same("gate.to_gates.weight"), **two_layers("experts.experts.{}", sizes.experts, 0, 2)}

    def theirs(x: Tensor) -> tuple[Tensor, Losses]:
        found = block(x)
        losses = {"z": found.router_z_loss, **({} if factor else {"balance": found.balance_loss})}
        return found.outputs, losses if block.training else {}

    return Twin(block, layer, layout, theirs, losses_by_group(layer))


def soft(sizes: Sizes, generator: torch.Generator, *, slots: int = 2, padded: int = 0) -> Twin:
    """`soft_moe_pytorch.SoftMoE` with gammas that make its RMS norms the paper's l2 norms, the second times the scale.

    Its experts see the normalised x, so ours are given that. padded: positions at the end of each group that are masked in
    both; theirs gives them an output, ours gives 0, and they are left out of the comparison.
    """
    module = importlib.import_module("soft_moe_pytorch")
    block = draw(
        module.SoftMoE(
            sizes.width, num_experts=sizes.experts, num_slots=slots, expert_mult=sizes.hidden / sizes.width
        ), sizes, generator,
    )  # fmt: skip
    scale = 3.0
    with torch.no_grad():
        block.get_parameter("norm.gamma").fill_(sizes.width**-0.5)
        block.get_parameter("slot_norm.gamma").fill_(scale * sizes.width**-0.5)
    layer = layer_of("soft", sizes, "gelu", bias=True, slots_per_expert=slots)
    layout = {
        "router.phi": lambda named: named("slot_embeds").flatten(0, 1).mT,
        "router.scale": lambda named: named("slot_norm.gamma").sum() * sizes.width**-0.5,
        **two_layers("experts.experts.{}", sizes.experts, 0, 3),
    }
    real = torch.arange(sizes.positions).expand(sizes.groups, -1) < sizes.positions - padded

    def theirs(x: Tensor) -> tuple[Tensor, Losses]:
        return block(x, mask=real) * real.unsqueeze(-1), {}

    def ours(x: Tensor) -> tuple[Tensor, Losses]:
        return layer(nn.functional.normalize(x, dim=-1), mask=real)[0], {}

    return Twin(block, layer, layout, theirs, ours)
