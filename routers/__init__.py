"""Routers: the base class, plans, capacity, losses, and one file for each published router."""

from typing import TYPE_CHECKING

from routelab.core.lazy_imports import lazy

if TYPE_CHECKING:
    from routelab.core.errors import UsageError
    from routelab.core.flops import Cost
    from routelab.routers.base import ExpertWork, Router, RouterInput, Routing
    from routelab.routers.build import build_router
    from routelab.routers.capacity import limit
    from routelab.routers.plans import Blend, PerExpert, Plan, Ragged, Slots, TopK
    from routelab.routers.router_registry import ROUTERS, register_router

__all__ = [
    "ROUTERS", "Blend", "Cost", "ExpertWork", "PerExpert", "Plan", "Ragged", "Router", "RouterInput", "Routing", "Slots",
    "TopK", "UsageError", "build_router", "limit", "register_router",
]  # fmt: skip

__getattr__, __dir__ = lazy(
    __name__,
    {
        "limit": "routelab.routers.capacity",
        **dict.fromkeys(("ExpertWork", "Router", "RouterInput", "Routing"), "routelab.routers.base"),
        "Cost": "routelab.core.flops",
        "UsageError": "routelab.core.errors",
        **dict.fromkeys(("Blend", "PerExpert", "Plan", "Ragged", "Slots", "TopK"), "routelab.routers.plans"),
        "build_router": "routelab.routers.build",
        **dict.fromkeys(("ROUTERS", "register_router"), "routelab.routers.router_registry"),
    },
)
