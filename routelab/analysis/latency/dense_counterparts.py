"""Dense models to time a mixture against: of equal FLOPs, and of equal parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.comparison.matching import match_arms
from routelab.config.arm_grid import ArmChoice
from routelab.config.run_spec import RunSpec
from routelab.config.schema import Match
from routelab.data.task import Task

MIXTURE, EQUAL_FLOPS, EQUAL_PARAMETERS = "mixture", "dense, equal FLOPs", "dense, equal parameters"

_MATCHES = {EQUAL_FLOPS: "flops_per_example", EQUAL_PARAMETERS: "total_params"}
_SIZES = ("hidden", "moe_every")


def rivals_of(spec: RunSpec, task: Task, device: torch.device) -> dict[str, SingleBackbone]:
    """The backbone of a routed run with dense feed-forwards, as wide as matching makes them to the mixture, by name.

    Their weights are the initial ones: the time of a product does not depend on its values. UsageError where no width is within
    2% of the mixture's FLOPs or parameters.
    """
    backbone: Mapping[str, Any] = {key: value for key, value in spec.arm.backbone.items() if key not in _SIZES}
    ours = ArmChoice(MIXTURE, spec.arm, spec.optimizer)
    dense = ArmChoice("dense", ArmSpec("dense", backbone, spec.arm.experts), spec.optimizer)
    found = {}
    for name, measure in _MATCHES.items():
        matched = match_arms([ours, dense], task, Match(on=measure, reference=MIXTURE))[1]
        arm = make_arm(matched.choice.spec, task, spec.seed)
        assert isinstance(arm, SingleBackbone)
        found[name] = arm.to(device).eval()
    return found
