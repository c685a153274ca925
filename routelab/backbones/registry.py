"""The table of backbones, free of heavy imports so that names can be listed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routers.registry import Registry

if TYPE_CHECKING:
    from routelab.backbones.contract import Backbone

BACKBONES: Registry[type[Backbone]] = Registry(
    "backbone",
    "routelab.backbones",
    {"decoder": "routelab.backbones.decoder:Decoder", "vit": "routelab.backbones.vit:ViT"},
)
