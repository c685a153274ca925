"""Experts: the mixture layer, grouped experts, dispatch, and CPU kernels."""

from typing import TYPE_CHECKING

from routelab.core.lazy_imports import lazy

if TYPE_CHECKING:
    from routelab.core.initialisation import initialise
    from routelab.experts.feed_forward import KINDS, FeedForward, Kind, register_expert
    from routelab.experts.grouped_experts import ExpertBank
    from routelab.experts.moe_layer import MixtureLayer

__all__ = ["KINDS", "ExpertBank", "FeedForward", "Kind", "MixtureLayer", "initialise", "register_expert"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "ExpertBank": "routelab.experts.grouped_experts",
        "initialise": "routelab.core.initialisation",
        **dict.fromkeys(("KINDS", "FeedForward", "Kind", "register_expert"), "routelab.experts.feed_forward"),
        "MixtureLayer": "routelab.experts.moe_layer",
    },
)
