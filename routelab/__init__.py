"""routelab: a laboratory for routing strategies. The public names, imported on first use."""

from typing import TYPE_CHECKING

from routers.lazy import lazy

if TYPE_CHECKING:
    from experts.bank import ExpertBank
    from experts.mixture import MixtureLayer
    from routelab.comparison.compare import Comparison, compare
    from routelab.comparison.single import train
    from routelab.training.loop import Run
    from routers.contract import Router, RouterInput, Routing
    from routers.plans import Blend, PerExpert, Ragged, Slots, TopK
    from routers.registry import build_router, register_router

__all__ = [
    "Blend", "Comparison", "ExpertBank", "MixtureLayer", "PerExpert", "Ragged", "Router", "RouterInput", "Routing", "Run", "Slots",
    "TopK", "build_router", "compare", "register_router", "train",
]  # fmt: skip

__getattr__, __dir__ = lazy(
    __name__,
    {
        "ExpertBank": "experts.bank",
        "MixtureLayer": "experts.mixture",
        **dict.fromkeys(("Comparison", "compare"), "routelab.comparison.compare"),
        "train": "routelab.comparison.single",
        "Run": "routelab.training.loop",
        **dict.fromkeys(("Router", "RouterInput", "Routing"), "routers.contract"),
        **dict.fromkeys(("Blend", "PerExpert", "Ragged", "Slots", "TopK"), "routers.plans"),
        **dict.fromkeys(("build_router", "register_router"), "routers.registry"),
    },
)
