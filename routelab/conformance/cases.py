"""The built-in routers and the variants of their options that the tests run on, beside the defaults of every one."""

from __future__ import annotations

from typing import Any

from routelab.routers.router_registry import ROUTERS

_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk_raw": ("topk", {"top_k": 1, "renormalize": False}),
    "expert_choice_batch": ("expert_choice", {"across": "batch"}),
    "hash_projection": ("hash", {"method": "projection"}),
    "hash_bigram": ("hash", {"method": "bigram"}),
    "hash_position": ("hash", {"method": "position"}),
    "sinkhorn_2": ("sinkhorn", {"top_k": 2}),
    # Renormalised, a choice of three examples leaves out an expert, which then has no gradient.
    "sequence_2": ("sequence", {"top_k": 2, "renormalize": False}),
    "sequence_whole_model": ("sequence", {"whole_model": True}),
    "hierarchical_1": ("hierarchical", {"top_k": 1}),
    "hierarchical_groups": ("hierarchical", {"top_groups": 2, "top_k": 1}),
    "hierarchical_4": ("hierarchical", {"top_groups": 2, "top_k": 2}),
    "random_blend": ("random", {"top_k": 2, "evaluation": "blend"}),
    "random_frozen": ("random", {"frozen": True}),
    "gpt_oss": ("gpt_oss", {"top_k": 2}),
    "relu": ("relu", {"top_k": 2}),
    "top_p": ("top_p", {"p": 0.6}),
    "top_p_renormalized": ("top_p", {"p": 0.6, "renormalize": True}),
    "mixture_of_depths": ("mixture_of_depths", {"capacity": 0.5}),
    "mixture_of_depths_best": ("mixture_of_depths", {"capacity": 0.5, "predictor": None}),
    "moe_plus_plus_free": ("moe_plus_plus", {"zero_compute": 2}),
    "deepseek_groups": ("deepseek", {"n_group": 2, "topk_group": 1}),
}


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Case -> (router, options): every built-in router under its own name, and its variants."""
    return {name: (name, {}) for name in ROUTERS.names() if ROUTERS.origin(name) == "built in"} | _VARIANTS
