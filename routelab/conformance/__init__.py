"""Conformance suite: rules that every router must keep, one sentence each.

from routelab.conformance import RouterConformance

class TestMine(RouterConformance):
    router = "mine"                 # a registered name, or the class itself
    options = {"temperature": 2.0}
"""

from typing import TYPE_CHECKING

from routelab.core.lazy_imports import lazy

if TYPE_CHECKING:
    from routelab.conformance.rules import Check
    from routelab.conformance.suite import RouterConformance, check_router

__all__ = ["Check", "RouterConformance", "check_router"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Check": "routelab.conformance.rules",
        **dict.fromkeys(("RouterConformance", "check_router"), "routelab.conformance.suite"),
    },
)
