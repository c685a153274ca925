"""Published mixtures of experts as data, and what they cost in closed form. Free of heavy imports."""

from routelab.presets.models import PRESETS, preset

__all__ = ["PRESETS", "preset"]
