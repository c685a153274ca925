"""Arms that are made of another, their base."""

from __future__ import annotations

from typing import Any

from routelab.baselines.backbone_arm import SingleBackbone, whole
from routelab.baselines.base import Arm, ArmSpec

WIDTHS = {"d_model": ("backbone.d_model",), "hidden": ("backbone.hidden", "experts.hidden")}
"""Options that are widths of the base, and what they set of its description."""


class Based(Arm):
    """Base of arms around one backbone, whose properties are theirs: `dense`, or the router's that the option `base` names."""

    @classmethod
    def made_of(cls, spec: ArmSpec) -> tuple[str, ...]:
        return (spec.name, str(spec.options.get("base", _base(cls.options_type()))))

    def base_spec(self) -> ArmSpec:
        """The base as an arm of its own, in the sections of this one and in the widths of its options."""
        spec = ArmSpec(_base(self.options), self.spec.backbone, self.spec.experts, self.spec.router)
        for name, places in WIDTHS.items():
            width = getattr(self.options, name, None)
            for place in places if width is not None else ():
                spec = spec.with_value(place, whole(name, width))
        return spec

    @property
    def template(self) -> SingleBackbone:
        """What predicts here, or one of several alike. It may lie on the meta device: it is asked what it costs and what it is."""
        raise NotImplementedError(f"{type(self).__name__} must define template")

    @property
    def unsizable(self) -> str | None:
        return self.template.unsizable

    @property
    def causal(self) -> bool:
        return self.template.causal

    @property
    def batch_coupled(self) -> bool:
        return self.template.batch_coupled

    @property
    def leaks(self) -> str | None:
        return self.template.leaks

    @property
    def leaks_in_training(self) -> str | None:
        return self.template.leaks_in_training

    @property
    def evaluation_coupled(self) -> bool:
        return self.template.evaluation_coupled


def _base(options: Any) -> Any:
    return getattr(options, "base", "dense")
