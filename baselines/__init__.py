"""Arms under comparison: dense, routed, ensembles, classic mixtures and scikit-learn references."""

from typing import TYPE_CHECKING

from routelab.core.lazy_imports import lazy

if TYPE_CHECKING:
    from routelab.baselines.base import BASELINES, Arm, ArmSpec, Prediction, Stage, StepLoss, register_baseline
    from routelab.baselines.build import make_arm
    from routelab.core.flops import Flops
    from routelab.data.task import Batch, Task

__all__ = [
    "BASELINES",
    "Arm",
    "ArmSpec",
    "Batch",
    "Flops",
    "Prediction",
    "Stage",
    "StepLoss",
    "Task",
    "make_arm",
    "register_baseline",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        **dict.fromkeys(
            ("BASELINES", "Arm", "ArmSpec", "Flops", "Prediction", "Stage", "StepLoss", "register_baseline"),
            "routelab.baselines.base",
        ),
        "make_arm": "routelab.baselines.build",
        **dict.fromkeys(("Batch", "Task"), "routelab.data.task"),
    },
)
