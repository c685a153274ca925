"""The one LightningModule that trains every arm.

Manual optimization: one `training_step` takes as many optimizer steps as lie before the next check, so that Lightning's
cost per step stays small; clipping, accumulation, schedule, budget and ledger are here. The data stay in memory, on the
device; the loaders only say that there is more to do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from baselines.contract import Arm
from baselines.task import Batch
from experts.initialisation import key
from routelab.data.contract import DataSet, Order
from routelab.training.config import Budget, Optimizer, TrainerOptions
from routelab.training.flops import Ledger
from routelab.training.telemetry import Tally

Progress = Callable[[float], None]
_EVALUATION_BATCH, _EVALUATION_TOKENS = 512, 32_768
"""Examples of an evaluation batch, and for texts tokens: every one of them has a distribution over the vocabulary."""


class NotFiniteError(Exception):
    """A loss that is not a finite number: the run ends, and its record says where."""


class Endless:
    """A loader that always has one more chunk of steps; the module decides when to stop."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class Slices:
    """A loader over a split's batches, as (start, end)."""

    def __init__(self, split: Batch) -> None:
        examples, size = len(split), _EVALUATION_BATCH
        if split.targets.ndim == 2 and not split.targets.is_floating_point():
            size = max(1, min(size, _EVALUATION_TOKENS // split.targets.shape[1]))
        self.bounds = [(i, min(i + size, examples)) for i in range(0, examples, size)]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.bounds)

    def __len__(self) -> int:
        return len(self.bounds)


class TrainingModule(pl.LightningModule):
    """Trains one arm on one data set for one budget, and keeps the curve."""

    def __init__(
        self,
        arm: Arm,
        data: DataSet,
        seed: int,
        budget: Budget,
        optimizer: Optimizer,
        options: TrainerOptions,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.arm, self.data, self.seed_value = arm, data, seed
        self.budget, self.settings, self.options, self.report_progress = budget, optimizer, options, progress
        self.order = Order(len(data.train), options.batch_size, seed)
        self.ledger, self.step, self.stage, self.check = Ledger(), 0, 0, 0
        self.curve: list[dict[str, float]] = []
        self.validation: dict[str, float] = {}
        self.test: dict[str, float] = {}
        self.telemetry: dict[str, float] = {}
        self.whole_run = Tally()
        self.measured_forward: float | None = None
        self._since_check, self._losses = Tally(), {}  # type: ignore[var-annotated]
        self._first: list[Tensor] | None = None
        self._seconds = self._said = 0.0
        shares = [stage.share for stage in arm.stages()]
        self._stage_ends = [sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]

    # Optimizer and schedule

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW; weight decay on matrices only. The fused kernel is the fastest on a CPU as on a GPU."""
        trainable = [parameter for parameter in self.arm.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.settings.lr,
            betas=(self.settings.beta1, self.settings.beta2),
            fused=True,
        )

    def spent(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        budget = self.budget
        if budget.steps is not None:
            return self.step / budget.steps
        if budget.epochs is not None:
            return self.step * self.options.batch_size * self.options.accumulate / (budget.epochs * len(self.data.train))
        if budget.seconds is not None:
            return self._seconds / budget.seconds
        assert budget.flops is not None
        return float(self.ledger.model) / budget.flops

    # Training

    def on_fit_start(self) -> None:
        data = self.data
        train, validation, test = (part.to(self.device) for part in (data.train, data.validation, data.test))
        self.data = replace(data, train=train, validation=validation, test=test)
        self.optimizer = self.optimizers(use_pl_optimizer=False)
        self.arm.begin(0)

    def training_step(self, chunk: Any, index: int) -> None:
        """Steps up to the next check, or to the end of the budget."""
        self.arm.train()
        started, before = time.perf_counter(), self._seconds
        next_check = (self.check + 1) / self.options.checks
        while True:
            share = self.spent()
            if share >= self._stage_ends[self.stage] and self.stage + 1 < len(self._stage_ends):
                self.stage += 1
                self.arm.begin(self.stage)
                self.optimizer = self._new_optimizer()
            self._optimizer_step(share)
            self._seconds = before + time.perf_counter() - started
            share = self.spent()
            if self._seconds - self._said > 0.5:
                self._said = self._seconds
                self.report_progress(min(share, 1.0))
            # The tolerance is for shares that are sums of binary fractions.
            if share >= min(next_check, 1.0) - 1e-9:
                break
        self.check = int(share * self.options.checks + 1e-9)
        if share >= 1 - 1e-9:
            self.trainer.should_stop = True

    def _optimizer_step(self, share: float) -> None:
        rate = self._rate(share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        micro = self.options.accumulate
        for part in range(micro):
            # All randomness of a step (jitter, random choices) is a function of (seed, step).
            torch.manual_seed(key(self.seed_value, "step", self.step, part))
            index = self.order.batch(self.step * micro + part).to(self.device)
            result = self.arm.loss(self.data.train.select(index), index)
            self.manual_backward(result.total / micro)
            self.ledger.add(result.flops)
            self._since_check.add_work(result.routings)
            self.whole_run.add_work(result.routings)
            self._remember("train/loss", result.task)
            for name, penalty in result.penalties.items():
                self._remember(f"train/{name}_loss", penalty.raw)
                self._remember(f"train/{name}_weighted", penalty.raw * penalty.weight)
            if self.device.type == "cpu" and not math.isfinite(float(result.total.detach())):
                raise NotFiniteError(f"the training loss was {float(result.total.detach())} at step {self.step}")
        if self.settings.clip:
            norm = torch.nn.utils.clip_grad_norm_(self.arm.parameters(), self.settings.clip)
            self._remember("train/gradient_norm", norm)
        self.optimizer.step()
        self.arm.update()
        self.step += 1

    def _rate(self, share: float) -> float:
        """The learning rate: a linear warm-up, then the schedule, over the present stage's part of the budget."""
        begin = self._stage_ends[self.stage - 1] if self.stage else 0.0
        share = min(max((share - begin) / (self._stage_ends[self.stage] - begin), 0.0), 1.0)
        warm = self.settings.warmup
        if share < warm:
            # Half a step ahead, so that the first step has a rate above 0.
            return self.settings.lr * max(share / warm, 0.02)
        rest = (share - warm) / (1 - warm)
        factor = {"cosine": 0.5 * (1 + math.cos(math.pi * rest)), "linear": 1 - rest, "constant": 1.0}[self.settings.schedule]
        return self.settings.lr * factor

    def _remember(self, name: str, value: Tensor) -> None:
        total, count = self._losses.get(name, (0.0, 0))
        self._losses[name] = (total + value.detach(), count + 1)

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self._tally, self._sums = Tally(), {}  # type: ignore[var-annotated]

    def validation_step(self, bounds: tuple[int, int], index: int) -> None:
        self._evaluate(self.data.validation, bounds)

    def on_validation_epoch_end(self) -> None:
        self.validation = self.data.task.summary(self._sums)
        self.telemetry = self._tally.summary(self._first) | {
            name: value for name, value in self._since_check.summary().items() if name in ("drop_rate", "padding_share")
        }
        self._first = self._tally.first()
        point: dict[str, float] = {
            "step": self.step,
            "flops": float(self.ledger.model),
            "flops_executed": float(self.ledger.executed),
            "seconds": self._seconds,
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        point |= {name: float(total) / count for name, (total, count) in self._losses.items()}
        point |= {f"val/{name}": value for name, value in self.validation.items()}
        point |= {f"router/{name}": value for name, value in self.telemetry.items()}
        self.curve.append(point)
        self._since_check, self._losses = Tally(), {}
        for name in ("train/loss", "val/loss"):
            if not math.isfinite(point[name]):
                raise NotFiniteError(f"{name} was {point[name]} at step {self.step}")

    def on_test_epoch_start(self) -> None:
        self._tally, self._sums = Tally(), {}
        self._before_test = self.ledger.evaluation

    def test_step(self, bounds: tuple[int, int], index: int) -> None:
        self._evaluate(self.data.test, bounds)

    def on_test_epoch_end(self) -> None:
        self.test = self.data.task.summary(self._sums)
        self.measured_forward = float(self.ledger.evaluation - self._before_test) / len(self.data.test)
        self.test_telemetry = self._tally.summary()

    def _evaluate(self, split: Batch, bounds: tuple[int, int]) -> None:
        batch = split.select(slice(int(bounds[0]), int(bounds[1])))
        torch.manual_seed(key(self.seed_value, "evaluation", self.step, int(bounds[0])))
        prediction = self.arm.predict(batch)
        self.ledger.add_evaluation(prediction.flops)
        for name, value in self.data.task.statistics(prediction.outputs, batch.targets).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if prediction.routings:
            self._tally.add(prediction.routings, len(batch), prediction.positions)
