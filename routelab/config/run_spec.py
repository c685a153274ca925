"""The specification of one run, and the device and precision that it resolves to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.run_reference import Recorded, teacher_of
from routelab.config.run_options import Budget, Optimizer, TrainerOptions

if TYPE_CHECKING:
    from routelab.config.arm_grid import ArmChoice
    from routelab.config.schema import Config

WEIGHTS = "weights.ckpt"


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's result, as plain data. label names the arm in tables and decides nothing.

    init: the run that it begins from, None = values drawn by the seed.
    """

    label: str
    arm: ArmSpec
    seed: int
    data: dict[str, Any]
    budget: Budget
    optimizer: Optimizer
    trainer: TrainerOptions
    plugins: tuple[str, ...] = ()
    init: Recorded | None = None

    @classmethod
    def of(cls, config: Config, choice: ArmChoice, seed: int) -> RunSpec:
        """The run of one arm and seed under a configuration."""
        return cls(
            choice.label,
            choice.spec,
            seed,
            dict(config.data),
            config.budget.times(choice.times),
            choice.optimizer,
            config.trainer,
            tuple(config.plugins),
        )

    def plain(self) -> dict[str, Any]:
        """Nested dicts of plain values, without the label."""
        value = asdict(self)
        del value["label"]
        return value


def builds_on(spec: RunSpec) -> float | None:
    """Training FLOPs of the runs that this one builds on: the one that it begins from, and its teacher. None if there is none."""
    runs = [run for run in (spec.init, teacher_of(spec.arm)) if run is not None]
    return sum(run.flops for run in runs) if runs else None


def runs_on(options: TrainerOptions) -> dict[str, Any]:
    """`accelerator` and `precision` of a run, and what `auto` comes to on this machine."""
    accelerator, precision = options.accelerator, options.precision
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "gpu" and torch.cuda.is_bf16_supported() else "32-true"
    return {"accelerator": accelerator, "precision": precision}
