"""The arms: everything that can be compared, through one contract."""

from typing import TYPE_CHECKING

from routers.lazy import lazy

if TYPE_CHECKING:
    from baselines.contract import BASELINES, Arm, ArmSpec, Flops, Prediction, Stage, StepLoss, make_arm, register_baseline
    from baselines.task import Batch, Task

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
            ("BASELINES", "Arm", "ArmSpec", "Flops", "Prediction", "Stage", "StepLoss", "make_arm", "register_baseline"),
            "baselines.contract",
        ),
        **dict.fromkeys(("Batch", "Task"), "baselines.task"),
    },
)
