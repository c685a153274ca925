"""The blocks of transformers, which is imported only when one is built.

Axes: G groups, S positions, T = G * S tokens, D features, H hidden width, E experts, k choices.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from routelab.experts.moe_layer import MixtureLayer
from routelab.parity.differences import Losses, Named, Twin
from routelab.parity.reference_case import Sizes, draw, layer_of, losses_by_group, of_room, only_output, plain
from routelab.parity.weight_mapping import parts, same, stacked, turned
from routelab.routers.plans import TopK


def transformers(module: str) -> Any:
    """A modelling module of transformers."""
    return importlib.import_module(f"transformers.models.{module}.modeling_{module}")


# The fused experts of transformers: gate_up_proj (E, 2H, D), gate first, and down_proj (E, D, H).
FUSED: dict[str, Callable[[Named], Tensor]] = {
    "experts.gate": lambda named: parts("experts.gate_up_proj", 1, 0)(named).mT,
    "experts.up": lambda named: parts("experts.gate_up_proj", 1, 1)(named).mT,
    "experts.down": turned("experts.down_proj"),
}


def shared_from(prefix: str) -> dict[str, Callable[[Named], Tensor]]:
    """A shared SwiGLU expert of transformers."""
    return {f"shared.{part}": turned(f"{prefix}.{part}_proj.weight") for part in ("gate", "up", "down")}


def fused_twin(module: Any, block: nn.Module, sizes: Sizes, top_k: int, layer: MixtureLayer) -> Twin:
    """Mixtral and its kin, with the load-balancing loss that transformers adds in the model's head.

    Theirs is k at perfect balance, as its shares add up to k over the experts; ours is 1.
    """
    router: nn.Module = block.get_submodule("gate")

    def theirs(x: Tensor) -> tuple[Tensor, Losses]:
        out = block(x)
        logits = router(x)[0]
        return out, {"balance": module.load_balancing_loss_func((logits,), sizes.experts, top_k) / top_k}

    return Twin(block, layer, {"router.weight": same("gate.weight"), **FUSED}, theirs, plain(layer))


def mixtral(sizes: Sizes, generator: torch.Generator, *, top_k: int = 2) -> Twin:
    """`MixtralSparseMoeBlock`."""
    module = transformers("mixtral")
    config = module.MixtralConfig(
        hidden_size=sizes.width, intermediate_size=sizes.hidden, num_local_experts=sizes.experts, num_experts_per_tok=top_k
    )
    block = draw(module.MixtralSparseMoeBlock(config), sizes, generator)
    return fused_twin(module, block, sizes, top_k, layer_of("topk", sizes, "swiglu", top_k=top_k))


def olmoe(sizes: Sizes, generator: torch.Generator, *, top_k: int = 3, renormalize: bool = False) -> Twin:
    """`OlmoeSparseMoeBlock`; the published model does not renormalise."""
    module = transformers("olmoe")
    config = module.OlmoeConfig(
        hidden_size=sizes.width, intermediate_size=sizes.hidden, num_experts=sizes.experts, num_experts_per_tok=top_k,
        norm_topk_prob=renormalize,
    )  # fmt: skip
    block = draw(module.OlmoeSparseMoeBlock(config), sizes, generator)
    return fused_twin(module, block, sizes, top_k, layer_of("topk", sizes, "swiglu", top_k=top_k, renormalize=renormalize))


def qwen3(sizes: Sizes, generator: torch.Generator, *, top_k: int = 4, renormalize: bool = True) -> Twin:
    """`Qwen3MoeSparseMoeBlock`; the published models renormalise."""
    module = transformers("qwen3_moe")
    config = module.Qwen3MoeConfig(
        hidden_size=sizes.width, moe_intermediate_size=sizes.hidden, num_experts=sizes.experts, num_experts_per_tok=top_k,
        norm_topk_prob=renormalize,
    )  # fmt: skip
    block = draw(module.Qwen3MoeSparseMoeBlock(config), sizes, generator)
    return fused_twin(module, block, sizes, top_k, layer_of("topk", sizes, "swiglu", top_k=top_k, renormalize=renormalize))


def deepseek_v3(
    sizes: Sizes,
    generator: torch.Generator,
    *,
    top_k: int = 3,
    n_group: int = 1,
    topk_group: int = 1,
    scale: float = 2.5,
    n_shared: int = 1,
) -> Twin:
    """`DeepseekV3MoE`, shared experts and all, with a bias that changes choices. It has no loss."""
    module = transformers("deepseek_v3")
    config = module.DeepseekV3Config(
        hidden_size=sizes.width, moe_intermediate_size=sizes.hidden, n_routed_experts=sizes.experts,
        num_experts_per_tok=top_k, n_group=n_group, topk_group=topk_group, routed_scaling_factor=scale,
        n_shared_experts=n_shared, norm_topk_prob=True,
    )  # fmt: skip
    block = draw(module.DeepseekV3MoE(config), sizes, generator)
    with torch.no_grad():
        block.get_buffer("gate.e_score_correction_bias").normal_(std=0.3, generator=generator)
    layer = layer_of(
        "deepseek", sizes, "swiglu", shared=sizes.hidden * n_shared,
        top_k=top_k, n_group=n_group, topk_group=topk_group, scale=scale,
    )  # fmt: skip
    layout = {
        "router.weight": same("gate.weight"),
        "router.bias": same("gate.e_score_correction_bias"),
        **FUSED,
        **shared_from("shared_experts"),
    }
    return Twin(block, layer, layout, only_output(block), plain(layer))


def deepseek_v2(sizes: Sizes, generator: torch.Generator, *, top_k: int = 3, n_shared: int = 2) -> Twin:
    """`DeepseekV2Moe` with greedy choice and no scaling, which is DeepSeekMoE's. It has no loss."""
    module = transformers("deepseek_v2")
    config = module.DeepseekV2Config(
        hidden_size=sizes.width, moe_intermediate_size=sizes.hidden, n_routed_experts=sizes.experts,
        num_experts_per_tok=top_k, topk_method="greedy", routed_scaling_factor=1.0, n_shared_experts=n_shared,
        num_attention_heads=1,
    )  # fmt: skip
    block = draw(module.DeepseekV2Moe(config), sizes, generator)
    layer = layer_of("deepseek_moe", sizes, "swiglu", shared=sizes.hidden * n_shared, top_k=top_k)
    layout = {"router.weight": same("gate.weight"), **FUSED, **shared_from("shared_experts")}
    return Twin(block, layer, layout, only_output(block), plain(layer))


def gpt_oss(sizes: Sizes, generator: torch.Generator, *, top_k: int = 4) -> Twin:
    """`GptOssMLP`, with projections so large that both clamps are at work."""
    module = transformers("gpt_oss")
    config = module.GptOssConfig(
        hidden_size=sizes.width, intermediate_size=sizes.hidden, num_local_experts=sizes.experts, num_experts_per_tok=top_k
    )
    block = draw(module.GptOssMLP(config), sizes, generator)
    with torch.no_grad():
        block.get_parameter("experts.gate_up_proj").mul_(5)
        block.get_parameter("experts.down_proj").mul_(0.1)
    layer = layer_of("gpt_oss", sizes, "clamped_swiglu", bias=True, top_k=top_k)
    layout = {
        "router.weight": same("router.weight"),
        "router.bias": same("router.bias"),
        "experts.gate": parts("experts.gate_up_proj", -1, 0, step=True),
        "experts.up": parts("experts.gate_up_proj", -1, 1, step=True),
        "experts.down": same("experts.down_proj"),
        "experts.gate_bias": parts("experts.gate_up_proj_bias", -1, 0, step=True),
        "experts.up_bias": parts("experts.gate_up_proj_bias", -1, 1, step=True),
        "experts.down_bias": same("experts.down_proj_bias"),
    }

    def theirs(x: Tensor) -> tuple[Tensor, Losses]:
        logits = block.get_submodule("router")(x.flatten(0, 1))[0]
        return block(x)[0], {"balance": module.load_balancing_loss_func((logits,), sizes.experts, top_k) / top_k}

    return Twin(block, layer, layout, theirs, plain(layer))


def llama4(sizes: Sizes, generator: torch.Generator) -> Twin:
    """`Llama4TextMoe` with its shared expert. It has no loss."""
    module = transformers("llama4")
    config = module.Llama4TextConfig(
        hidden_size=sizes.width, intermediate_size=sizes.hidden, num_local_experts=sizes.experts, num_experts_per_tok=1
    )
    block = draw(module.Llama4TextMoe(config), sizes, generator)
    layer = layer_of("llama4", sizes, "swiglu", shared=sizes.hidden)
    layout = {
        "router.weight": same("router.weight"),
        "experts.gate": parts("experts.gate_up_proj", -1, 0),
        "experts.up": parts("experts.gate_up_proj", -1, 1),
        "experts.down": same("experts.down_proj"),
        **shared_from("shared_expert"),
    }
    return Twin(block, layer, layout, only_output(block), plain(layer))


def switch(sizes: Sizes, generator: torch.Generator, *, room: int | None = None) -> Twin:
    """`SwitchTransformersSparseMLP` without jitter. room: its `expert_capacity`, rows per expert and sequence.

    Its jitter, in float32, is written onto the tensor that the experts see as well, which the paper does not mean.
    """
    module = transformers("switch_transformers")
    config = module.SwitchTransformersConfig(
        d_model=sizes.width, d_ff=sizes.hidden, num_experts=sizes.experts, dropout_rate=0.0, router_jitter_noise=0.0,
        expert_capacity=sizes.positions if room is None else room,
    )  # fmt: skip
    block = draw(module.SwitchTransformersSparseMLP(config), sizes, generator)
    layer = layer_of("switch", sizes, "relu", layer=of_room(sizes, room, 1), jitter=0.0)
    layout = {
        "router.weight": same("router.classifier.weight"),
        "experts.up": stacked("experts.expert_{}.wi.weight", sizes.experts),
        "experts.down": stacked("experts.expert_{}.wo.weight", sizes.experts),
    }

    def theirs(x: Tensor) -> tuple[Tensor, Losses]:
        logits = block.get_submodule("router")(x)[2]
        # As the model's head calls it: the choices before any is dropped, each sequence by itself.
        return block(x), {"balance": module.load_balancing_loss_func(logits.softmax(-1), logits.argmax(-1))}

    return Twin(block, layer, layout, theirs, losses_by_group(layer))


def batch_prioritised(sizes: Sizes, generator: torch.Generator, *, room: int = 5, by_probability: bool = True) -> Twin:
    """`NllbMoeTop2Router` alone: the weight of every expert for every token, after dropping. room: rows per expert.

    Not its experts, which in transformers 5 look at a mask as if it were expert numbers.
    """
    module = transformers("nllb_moe")
    config = module.NllbMoeConfig(
        d_model=sizes.width, num_experts=sizes.experts, expert_capacity=room, second_expert_policy="all",
        batch_prioritized_routing=by_probability, normalize_router_prob_before_dropping=True, router_dtype="float32",
        moe_eval_capacity_token_fraction=-1.0,
    )  # fmt: skip
    block = draw(module.NllbMoeTop2Router(config), sizes, generator)
    factor = room * sizes.experts / (2 * sizes.groups * sizes.positions)
    options = {
        "capacity_factor": factor,
        "eval_capacity_factor": factor,
        "priority": "probability" if by_probability else "choice",
    }
    layer = layer_of("top2", sizes, "relu", layer=options, second_policy="all")

    def theirs(x: Tensor) -> tuple[Tensor, Losses]:
        return block(x.flatten(0, 1))[1], {}

    def ours(x: Tensor) -> tuple[Tensor, Losses]:
        plan = layer(x)[1].plan
        assert isinstance(plan, TopK)
        kept = plan.weight if plan.keep is None else plan.weight * plan.keep
        return torch.zeros(len(kept), sizes.experts).scatter(1, plan.expert, kept), {}

    # The experts take no part; any weights do.
    rest = {f"experts.{name}": _nothing(value) for name, value in layer.experts.named_parameters()}
    return Twin(block, layer, {"router.weight": same("classifier.weight"), **rest}, theirs, ours)


def _nothing(like: Tensor) -> Callable[[Named], Tensor]:
    return lambda named: torch.zeros_like(like)
