"""Options of one run: its budget, its optimizer, and its trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PRECISIONS = ("auto", "32-true", "bf16-mixed")
SCHEDULES = ("cosine", "linear", "constant")


@dataclass
class Budget:
    """When a run ends; exactly one is set (steps=300 if none is).

    flops: model FLOPs of training. Rows that capacity dropped are not among them, so an arm that drops takes more steps.
    """

    flops: float | None = None
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None

    def times(self, factor: float) -> Budget:
        """So many times this budget; at least one step."""
        steps = None if self.steps is None else max(1, round(self.steps * factor))
        flops, epochs, seconds = (
            None if value is None else value * factor for value in (self.flops, self.epochs, self.seconds)
        )
        return Budget(flops=flops, steps=steps, epochs=epochs, seconds=seconds)


@dataclass
class Optimizer:
    """AdamW. lr: the peak rate, or a list of which every arm is given its best, chosen on validation by `compare`.

    warmup: share of the budget with a rising rate. clip: largest gradient norm, 0 = none.
    """

    lr: Any = 2e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    warmup: float = 0.1
    schedule: str = "cosine"
    clip: float = 1.0


@dataclass
class TrainerOptions:
    """How a run is carried out. accumulate: micro-batches per step, each of batch_size. checks: validations per run.

    devices: processes that one run is spread over, each with its share of batch_size and a device of its own (data
    parallel). Capacity and choices across a batch are then those of each process's share.

    checkpoint_seconds: how often the state of an unfinished run is written; 0 = after every step, null = never.
    """

    accelerator: str = "auto"
    precision: str = "auto"
    devices: int = 1
    accumulate: int = 1
    compile: bool = False
    batch_size: int = 64
    checks: int = 15
    checkpoint_seconds: float | None = 30.0
