"""Public names of routelab, a laboratory for routing strategies. They are imported on first use."""

from typing import TYPE_CHECKING

from routelab.core.lazy_imports import lazy

if TYPE_CHECKING:
    from routelab.comparison.compare import Comparison, compare
    from routelab.comparison.train_one import train
    from routelab.core.version import __version__
    from routelab.experts.grouped_experts import ExpertBank
    from routelab.experts.moe_layer import MixtureLayer
    from routelab.routers.base import Router, RouterInput, Routing
    from routelab.routers.build import build_router
    from routelab.routers.plans import Blend, PerExpert, Ragged, Slots, TopK
    from routelab.routers.router_registry import register_router
    from routelab.training.run import Run

__all__ = [
    "Blend", "Comparison", "ExpertBank", "MixtureLayer", "PerExpert", "Ragged", "Router", "RouterInput", "Routing", "Run", "Slots",
    "TopK", "__version__", "build_router", "compare", "register_router", "train",
]  # fmt: skip

__getattr__, __dir__ = lazy(
    __name__,
    {
        "ExpertBank": "routelab.experts.grouped_experts",
        "MixtureLayer": "routelab.experts.moe_layer",
        **dict.fromkeys(("Comparison", "compare"), "routelab.comparison.compare"),
        "train": "routelab.comparison.train_one",
        "__version__": "routelab.core.version",
        "Run": "routelab.training.run",
        **dict.fromkeys(("Router", "RouterInput", "Routing"), "routelab.routers.base"),
        **dict.fromkeys(("Blend", "PerExpert", "Ragged", "Slots", "TopK"), "routelab.routers.plans"),
        "build_router": "routelab.routers.build",
        "register_router": "routelab.routers.router_registry",
    },
)
