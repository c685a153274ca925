"""The dense arm: every token runs the same feed-forward."""

from __future__ import annotations

from routelab.baselines.backbone_arm import SingleBackbone


class Dense(SingleBackbone):
    """The backbone with dense feed-forward layers of width `backbone.hidden`: the reference of every comparison."""

    knobs = ("backbone.hidden",)
