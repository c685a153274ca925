"""How tokens choose experts: the contract, the plans, capacity, losses, and one file per family of routers."""

from typing import TYPE_CHECKING

from routers.lazy import lazy

if TYPE_CHECKING:
    from routers.capacity import limit
    from routers.contract import ExpertWork, Router, RouterInput, Routing
    from routers.cost import Cost
    from routers.errors import UsageError
    from routers.plans import Blend, PerExpert, Plan, Ragged, Slots, TopK
    from routers.registry import ROUTERS, build_router, register_router

__all__ = [
    "ROUTERS", "Blend", "Cost", "ExpertWork", "PerExpert", "Plan", "Ragged", "Router", "RouterInput", "Routing", "Slots",
    "TopK", "UsageError", "build_router", "limit", "register_router",
]  # fmt: skip

__getattr__, __dir__ = lazy(
    __name__,
    {
        "limit": "routers.capacity",
        **dict.fromkeys(("ExpertWork", "Router", "RouterInput", "Routing"), "routers.contract"),
        "Cost": "routers.cost",
        "UsageError": "routers.errors",
        **dict.fromkeys(("Blend", "PerExpert", "Plan", "Ragged", "Slots", "TopK"), "routers.plans"),
        **dict.fromkeys(("ROUTERS", "build_router", "register_router"), "routers.registry"),
    },
)
