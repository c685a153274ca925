"""Backbones: networks whose feed-forward layers a factory builds, dense or routed."""

from typing import TYPE_CHECKING

from routelab.core.lazy_imports import lazy

if TYPE_CHECKING:
    from routelab.backbones.base import BACKBONES, Backbone, FeedForwardFactory, Slot, register_backbone
    from routelab.data.task import InputSpec

__all__ = ["BACKBONES", "Backbone", "FeedForwardFactory", "InputSpec", "Slot", "register_backbone"]

__getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, "routelab.backbones.base"))
