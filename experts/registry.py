"""The table of expert kinds, free of heavy imports so that names can be listed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routers.registry import Registry

if TYPE_CHECKING:
    from experts.kinds import Kind

KINDS: Registry[Kind] = Registry(
    "expert kind",
    "routelab.experts",
    {
        "clamped_swiglu": "experts.kinds:CLAMPED_SWIGLU",
        "gelu": "experts.kinds:GELU",
        "relu": "experts.kinds:RELU",
        "swiglu": "experts.kinds:SWIGLU",
    },
)
