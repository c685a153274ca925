"""The one LightningModule that trains every arm.

Manual optimization: one `training_step` takes as many optimizer steps as lie before the next check, so that Lightning's
cost per step stays small; clipping, accumulation, schedule, budget and ledger are here. The data stay in memory, on the
device; the loaders only say that there is more to do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed

from routelab.baselines.base import Arm, predicted, step_loss
from routelab.baselines.evaluation_metrics import close_look, close_sums
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.core.collectives import processes
from routelab.core.flops import Flops
from routelab.core.seeds import key
from routelab.data.base import DataSet, Order
from routelab.data.task import Batch
from routelab.data.unit_table import UnitIndex, UnitSums
from routelab.training.checkpoint import Checkpoint
from routelab.training.engines.data_parallel import Books, average_gradients, rank, shared
from routelab.training.ledger import Ledger
from routelab.training.observer import Observer
from routelab.training.optimizer import clip, new_optimizer
from routelab.training.routing_metrics import Tally

_EVALUATION_BATCH, _EVALUATION_TOKENS = 512, 32_768
"""Examples of an evaluation batch, and for texts tokens: every one of them has a distribution over the vocabulary."""


_LATE = 0.02
"""Share of the budget that arms which are trained alike take each by themselves."""


class StoppedError(Exception):
    """Raised by an observer to end a run before its budget; the record keeps what was spent, with status "stopped"."""


_COUNTERS = (
    "step", "stage", "check", "curve", "loads", "validation", "telemetry", "_losses", "_first", "_seconds", "_stage_began",
)  # fmt: skip
"""What the module itself counts, by attribute."""


class NotFiniteError(Exception):
    """A loss that is not a finite number: the run ends, and its record says where."""


def reseed(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for the CPU and this device alone: that one takes a stack trace for every kind of device that the
    machine lacks, which costs more than a small network's forward pass, and keeps it."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


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
        observer: Observer,
        checkpoint: Checkpoint | None = None,
        common: Checkpoint | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.arm, self.data, self.seed_value = arm, data, seed
        self.budget, self.settings, self.options, self.observer = budget, optimizer, options, observer
        self.checkpoint, self.common = checkpoint, common
        self.order = Order(len(data.train), options.batch_size, *(arm.streams or (seed,)))
        self.ledger, self.step, self.stage, self.check = Ledger(), 0, 0, 0
        self.curve: list[dict[str, float]] = []
        self.loads: list[list[list[float]]] = []
        """For every point of the curve, layer and expert: the load over its layer's mean; see `Tally.loads`."""
        self.validation: dict[str, float] = {}
        self.test: dict[str, float] = {}
        self.telemetry: dict[str, float] = {}
        self.quality: dict[str, dict[str, Any]] = {}
        self.unit_sums: UnitSums | None = None
        self.figures: dict[str, Any] = {}
        self.whole_run = Tally()
        self.measured_forward: float | None = None
        self.resumed_at: int | None = None
        self.shared_steps: int | None = None
        self.rank, self.processes = 0, 1
        self._since_check, self._losses = Tally(), {}  # type: ignore[var-annotated]
        self._first: list[Tensor] | None = None
        self._seconds = self._said = self._stage_began = 0.0
        self._stages = list(arm.stages())

    # Optimizer and schedule

    def configure_optimizers(self) -> None:
        """None for Lightning: every stage has an optimizer of its own, made when the stage begins."""

    def spent(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        budget = self.budget
        if budget.steps is not None:
            return self.step / (budget.steps * self.arm.rounds)
        if budget.epochs is not None:
            seen = self.step * self.options.batch_size * self.options.accumulate
            return seen / (budget.epochs * self.arm.rounds * len(self.data.train))
        if budget.seconds is not None:
            return self._seconds / budget.seconds
        assert budget.flops is not None
        return float(self.ledger.model) / budget.flops

    # Training

    def on_fit_start(self) -> None:
        self.rank, self.processes = rank(), processes()
        data = self.data
        train, validation, test = (part.to(self.device) for part in (data.train, data.validation, data.test))
        self.data = replace(data, train=train, validation=validation, test=test)
        state = None if self.checkpoint is None else self.checkpoint.load(self.device)
        own = state is not None
        if not own and self.common is not None:
            state = self.common.load(self.device)
        self.arm.prepare(self.data.train)
        if state is None:
            self.arm.begin(0)
            self.groups = self.arm.parameter_groups()
            self.optimizer = new_optimizer(self.groups, self.settings)
        else:
            self._restore(state)
            self.resumed_at, self.shared_steps = (self.step, None) if own else (None, self.step)

    def _state(self) -> dict[str, Any]:
        """Everything that later steps, and the record, depend on. Plain data and tensors only."""
        return {
            "arm": self.arm.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ledger": vars(self.ledger),
            "tallies": {"whole_run": vars(self.whole_run), "since_check": vars(self._since_check)},
            "counters": {name: getattr(self, name) for name in _COUNTERS},
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        # Each stage may freeze parts and make others, so they are entered in order before their values are filled in.
        for stage in range(self.stage + 1):
            self.arm.begin(stage)
        self.arm.load_state_dict(state["arm"])
        self.groups = self.arm.parameter_groups()
        self.optimizer = new_optimizer(self.groups, self.settings)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ledger = Ledger(**state["ledger"])
        self.whole_run, self._since_check = (Tally(**state["tallies"][name]) for name in ("whole_run", "since_check"))
        for point in self.curve:
            self.observer.point(point)

    def training_step(self, chunk: Any, index: int) -> None:
        """Steps up to the next check, or to the end of the budget."""
        self.arm.train()
        started, before = time.perf_counter(), self._seconds
        next_check = (self.check + 1) / self.options.checks
        while True:
            share = self.spent()
            self._optimizer_step(share)
            step = self.spent() - share
            self._seconds = self._agreed(before + time.perf_counter() - started)
            # The tolerance is for shares that are sums of binary fractions.
            if self.spent() >= self._stage_end() - 1e-9:
                self._end_stage()
                self._seconds = self._agreed(before + time.perf_counter() - started)
            share = 1.0 if self.arm.done else self.spent()
            if self._seconds - self._said > 0.5:
                self._said = self._seconds
                self.observer.spent(min(share, 1.0))
            if share >= min(next_check, 1.0) - 1e-9:
                break
            started += self._save_if_due() + self._leave_for_others(step)
        self.check = int(share * self.options.checks + 1e-9)
        if share >= 1 - 1e-9:
            self.trainer.should_stop = True

    def _stage_end(self) -> float:
        """The share of the budget at which the present stage ends. What is left is shared out among the stages that are left,
        so that passes between stages, which a budget in FLOPs or seconds pays for too, shorten all of them alike."""
        shares = [stage.share for stage in self._stages[self.stage :]]
        return self._stage_began + (1 - self._stage_began) * shares[0] / sum(shares)

    def _end_stage(self) -> None:
        """Let the arm draw its conclusions, and begin the next stage if there is one and there is time."""
        self.arm.eval()
        with torch.no_grad():
            cost = self.arm.finish(self.stage, self.data.train)
        self.arm.train()
        if cost is not None:
            # Every process makes the whole pass; the work of one would do.
            self.ledger.add(Flops(cost.model, cost.executed * self.processes))
        if self.arm.done or self.stage + 1 == len(self._stages):
            return
        self.stage += 1
        self._stage_began = min(self.spent(), 1.0)
        # Gradients of what is frozen now would still count in the norm that is clipped.
        self.arm.zero_grad(set_to_none=True)
        self.arm.begin(self.stage)
        self.groups = self.arm.parameter_groups()
        if self._stages[self.stage].fresh:
            self.optimizer = new_optimizer(self.groups, self.settings)

    def _agreed(self, seconds: float) -> float:
        """The clock of process 0, where the budget hangs on it: all processes must end at the same step."""
        if self.processes == 1 or self.budget.seconds is None:
            return seconds
        clock = torch.tensor([seconds], dtype=torch.float64, device=self.device)
        distributed.broadcast(clock, 0)
        return float(clock)

    def _save_if_due(self) -> float:
        """Write the state if it is time; returns the seconds that took."""
        if self.checkpoint is None or self.rank or not self.checkpoint.due():
            return 0.0
        before = time.perf_counter()
        self.checkpoint.save(self._state())
        return time.perf_counter() - before

    def _leave_for_others(self, step: float) -> float:
        """Write the state where arms that are trained alike look for it, shortly before the last step. step: the share of the
        budget that one takes. Returns the seconds that took."""
        if self.common is None or self.rank or self.spent() < 1 - max(_LATE, 1.5 * step) or self.common.path.exists():
            return 0.0
        before = time.perf_counter()
        self.common.save(self._state())
        return time.perf_counter() - before

    def _optimizer_step(self, share: float) -> None:
        rate = self._rate(share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        micro, books = self.options.accumulate, Books()
        for part in range(micro):
            # All randomness of a step (jitter, random choices) is a function of (seed, step), and of the process.
            reseed(key(self.seed_value, "step", self.step, part, *([self.rank] if self.rank else [])), self.device)
            index = self.order.batch(self.step * micro + part)
            if self.processes > 1:
                index = index.chunk(self.processes, dim=-1)[self.rank]
            index = index.to(self.device)
            result = step_loss(self.arm, self.data.train.select(index), index)
            (result.total / micro).backward()
            books.enter(result)
        if self.processes > 1:
            average_gradients(self.arm.parameters())
            books.share(self.device)
        self.ledger.add(books.flops)
        for tally in (self._since_check, self.whole_run):
            tally.add_rows(books.rows.assigned, books.rows.kept, books.rows.executed)
        for name, value in books.losses.items():
            self._remember(name, value, micro)
        if self.device.type == "cpu" and not math.isfinite(float(books.total)):
            raise NotFiniteError(f"the training loss was {float(books.total)} at step {self.step}")
        if self.settings.clip:
            norm = clip(self.groups, self.settings.clip)
            self._remember("train/gradient_norm", norm, 1)
        self.optimizer.step()
        if self.processes > 1:
            for count in self.arm.counts():
                distributed.all_reduce(count)
        self.arm.update()
        self.step += 1

    def _rate(self, share: float) -> float:
        """The learning rate: a linear warm-up, then the schedule, over the present stage's part of the budget."""
        stage, begin = self._stages[self.stage], self._stage_began
        share = min(max((share - begin) / max(self._stage_end() - begin, 1e-9), 0.0), 1.0)
        warm = self.settings.warmup if stage.warmup is None else stage.warmup
        if share < warm:
            # The first step, too, has a rate above 0.
            return self.settings.lr * max(share / warm, 0.02)
        rest = (share - warm) / (1 - warm)
        shape = stage.schedule or self.settings.schedule
        factor = {"cosine": 0.5 * (1 + math.cos(math.pi * rest)), "linear": 1 - rest, "constant": 1.0}[shape]
        return self.settings.lr * factor

    def _remember(self, name: str, value: float | Tensor, times: int) -> None:
        total, count = self._losses.get(name, (0.0, 0))
        self._losses[name] = (total + value, count + times)

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self._begin_evaluation()

    def validation_step(self, bounds: tuple[int, int], index: int) -> None:
        self._evaluate(self.data.validation, bounds)

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation()
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
        # Rounded, as they make up most of a record.
        self.loads.append([[round(load, 4) for load in layer.tolist()] for layer in self._tally.loads()])
        self.observer.point(point)
        self._since_check, self._losses = Tally(), {}
        for name in ("train/loss", "val/loss"):
            if not math.isfinite(point[name]):
                raise NotFiniteError(f"{name} was {point[name]} at step {self.step}")
        # Never at the end of the budget: a resumed run has a step to go.
        if self.spent() < 1 - 1e-9 and not self.arm.done:
            self._save_if_due()

    def on_test_epoch_start(self) -> None:
        self._begin_evaluation()
        self.begin_units()

    def test_step(self, bounds: tuple[int, int], index: int) -> None:
        self._evaluate(self.data.test, bounds, closely=True)

    def on_test_epoch_end(self) -> None:
        self._end_evaluation()
        if self.unit_sums is not None and self.processes > 1:
            self.unit_sums.sums = shared(self.unit_sums.sums, self.device)
        self.test = self.data.task.summary(self._sums)
        self.quality = close_look(self.data.task, self._sums, self.data.domain_names)
        self.measured_forward = float(self.ledger.evaluation - self._before) / len(self.data.test)
        self.test_telemetry = self._tally.summary()
        self.figures, cost = self.arm.figures(self.data.train)
        if cost is not None:
            self.ledger.add_evaluation(cost)

    def begin_units(self) -> UnitSums:
        """Start new sums by test unit, and return them."""
        data = self.data
        index = UnitIndex.from_split(data.test, data.task, data.domain_names)
        self.unit_sums = UnitSums(data.task, index, data.test.targets.device)
        return self.unit_sums

    def _begin_evaluation(self) -> None:
        self._tally, self._sums, self._before = Tally(), {}, self.ledger.evaluation  # type: ignore[var-annotated]

    def _end_evaluation(self) -> None:
        """In several processes: what each of them saw becomes what all of them saw."""
        if self.processes == 1:
            return
        self._sums = shared(self._sums, self.device)
        spent = shared({"flops": self.ledger.evaluation - self._before}, self.device)["flops"]
        self.ledger.evaluation = self._before + spent
        parts: list[Tally] = [Tally()] * self.processes
        distributed.all_gather_object(parts, Tally.merged([self._tally]))
        self._tally = Tally.merged(parts)

    def _evaluate(self, split: Batch, bounds: tuple[int, int], closely: bool = False) -> None:
        start, end = int(bounds[0]), int(bounds[1])
        if self.processes > 1:
            length = end - start
            start, end = (start + length * (self.rank + more) // self.processes for more in (0, 1))
        if start == end:
            return
        batch = split.select(slice(start, end))
        reseed(key(self.seed_value, "evaluation", self.step, start), self.device)
        prediction = predicted(self.arm, batch)
        self.ledger.add_evaluation(prediction.flops)
        sums = self.data.task.statistics(prediction.outputs, batch.targets)
        if closely:
            sums |= close_sums(self.data.task, prediction, batch)
            if self.unit_sums is not None:
                self.unit_sums.add(prediction.outputs, batch.targets, start)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if prediction.routings:
            groups = len(batch) if prediction.groups is None else prediction.groups
            mask = batch.mask if batch.mask is not None and batch.mask.shape == (groups, prediction.positions) else None
            self._tally.add(prediction.routings, groups, prediction.positions, mask)
