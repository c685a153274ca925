"""Published architectures as data: parameters and FLOPs in closed form."""

from routelab.presets.models import PRESETS, preset

__all__ = ["PRESETS", "preset"]
