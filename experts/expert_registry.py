"""The table of expert kinds, free of heavy imports so that names can be listed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routelab.core.registry import Registry

if TYPE_CHECKING:
    from routelab.experts.feed_forward import Kind
    from routelab.experts.zero_compute import ZeroComputeKind

KINDS: Registry[Kind | ZeroComputeKind] = Registry(
    "expert kind",
    "routelab.experts",
    {
        "clamped_swiglu": "routelab.experts.feed_forward:CLAMPED_SWIGLU",
        "constant": "routelab.experts.zero_compute:CONSTANT",
        "copy": "routelab.experts.zero_compute:COPY",
        "gelu": "routelab.experts.feed_forward:GELU",
        "linear": "routelab.experts.feed_forward:LINEAR",
        "lora": "routelab.experts.feed_forward:LORA",
        "relu": "routelab.experts.feed_forward:RELU",
        "swiglu": "routelab.experts.feed_forward:SWIGLU",
        "zero": "routelab.experts.zero_compute:ZERO",
    },
    contract="routelab.experts.feed_forward:must_be_kind",
)
