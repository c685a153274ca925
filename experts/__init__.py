"""The networks that do the work: the bank, its kinds, dispatch, and the mixture layer."""

from typing import TYPE_CHECKING

from routers.lazy import lazy

if TYPE_CHECKING:
    from experts.bank import ExpertBank
    from experts.kinds import KINDS, FeedForward, Kind, register_expert
    from experts.mixture import MixtureLayer
    from routers.initialisation import initialise

__all__ = ["KINDS", "ExpertBank", "FeedForward", "Kind", "MixtureLayer", "initialise", "register_expert"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "ExpertBank": "experts.bank",
        "initialise": "routers.initialisation",
        **dict.fromkeys(("KINDS", "FeedForward", "Kind", "register_expert"), "experts.kinds"),
        "MixtureLayer": "experts.mixture",
    },
)
