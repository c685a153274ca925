"""The table of backbones, free of heavy imports so that names can be listed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routelab.core.registry import Registry

if TYPE_CHECKING:
    from routelab.backbones.base import Backbone

BACKBONES: Registry[type[Backbone]] = Registry(
    "backbone",
    "routelab.backbones",
    {
        "decoder": "routelab.backbones.decoder:Decoder",
        "mlp": "routelab.backbones.mlp:MLP",
        "tokens": "routelab.backbones.tokens:Tokens",
        "vit": "routelab.backbones.vit:ViT",
    },
    contract="routelab.backbones.base:must_be_backbone",
)

DEFAULT_FOR = {"image": "vit", "table": "tokens", "text": "decoder"}
"""The backbone of each kind of input where the config names none."""
