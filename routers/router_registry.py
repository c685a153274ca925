"""Table of the routers, free of heavy imports so that names can be listed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from routelab.core.registry import Decorated, Registry

if TYPE_CHECKING:
    from routelab.routers.base import Router


ROUTERS: Registry[type[Router]] = Registry(
    "router",
    "routelab.routers",
    {
        "base": "routelab.routers.base_layers:Base",
        "cosine": "routelab.routers.cosine:Cosine",
        "deepseek": "routelab.routers.deepseek:DeepSeek",
        "deepseek_moe": "routelab.routers.deepseek_moe:DeepSeekMoE",
        "dense_gate": "routelab.routers.dense_gate:DenseGate",
        "expert_choice": "routelab.routers.expert_choice:ExpertChoice",
        "gpt_oss": "routelab.routers.gpt_oss:GptOss",
        "hash": "routelab.routers.hash_layer:Hash",
        "hierarchical": "routelab.routers.hierarchical:Hierarchical",
        "latent": "routelab.routers.latent_moe:Latent",
        "llama4": "routelab.routers.llama4:Llama4",
        "mixture_of_depths": "routelab.routers.mixture_of_depths:MixtureOfDepths",
        "moe_plus_plus": "routelab.routers.moe_plus_plus:MoEPlusPlus",
        "noisy_topk": "routelab.routers.noisy_topk:NoisyTopK",
        "random": "routelab.routers.random_routing:Random",
        "relu": "routelab.routers.relu_routing:ReLU",
        "sequence": "routelab.routers.sequence_level:Sequence",
        "sinkhorn": "routelab.routers.sinkhorn:Sinkhorn",
        "soft": "routelab.routers.soft:Soft",
        "st_moe": "routelab.routers.st_moe:StMoe",
        "switch": "routelab.routers.switch:Switch",
        "top2": "routelab.routers.top2:Top2",
        "top_p": "routelab.routers.top_p:TopP",
        "topk": "routelab.routers.topk:TopKRouter",
    },
    contract="routelab.routers.base:must_be_router",
)


def register_router(name: str) -> Callable[[Decorated], Decorated]:
    """Class decorator: make a Router known as `name` to configs, the command line and `build_router`."""
    return ROUTERS.register(name)
