"""Distillation: a student learns from the data and from what a trained run makes of them.

Axes: B examples, S positions, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.base import Arm, ArmSpec, Penalty, Prediction, StepLoss
from routelab.baselines.build import make_arm, make_single
from routelab.baselines.run_reference import Recorded, restore, teacher_of
from routelab.baselines.wrapper import Based
from routelab.data.task import Batch, Task


@dataclass(frozen=True)
class DistilledOptions:
    """teacher: a run, by any of its names; a comparison finds its arm and weights, and a Recorded as plain data takes the
    name's place. base: what the student is, `dense` or a router's name. temperature: T. weight: w, of the teacher's loss.
    hidden: the student's feed-forward width, which matching may size; None = that of the backbone and experts sections.
    """

    teacher: Any = None
    base: str = "dense"
    temperature: float = 2.0
    weight: float = 0.5
    hidden: int | None = None


class Distilled(Based):
    """Knowledge distillation (Hinton et al. 2015, Distilling the knowledge in a neural network):

        (1 - w) task loss + w T^2 KL(softmax(teacher / T) || softmax(student / T))

    for classes, and for every predicted byte; T^2 keeps the gradients' size as T changes. For regression the second loss is the
    squared error to the teacher's output. w = 0 learns from the data alone, and the teacher is not asked.

    The teacher is any run that was trained in the loop, a mixture, a dense model or an ensemble. It is frozen and in
    evaluation mode, sees the student's batches, and is no part of the arm: not of its parameters, its checkpoint or its clipping.
    What its forward passes cost is charged to the student's training.
    """

    options_type = DistilledOptions
    knobs = ("options.hidden",)

    @classmethod
    def learns_from(cls, spec: ArmSpec) -> tuple[ArmSpec, ...]:
        teacher = teacher_of(spec)
        return () if teacher is None else (teacher.spec,)

    @classmethod
    def suggest(cls, trial: Any, spec: ArmSpec) -> dict[str, Any]:
        return {
            "options.temperature": trial.suggest_float("options.temperature", 1.0, 8.0, log=True),
            "options.weight": trial.suggest_float("options.weight", 0.1, 0.9),
        }

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        self.task = task
        for name, low, high in (("temperature", 0.0, float("inf")), ("weight", 0.0, 1.0)):
            value = getattr(self.options, name)
            known = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not known or not low <= value <= high or (name == "temperature" and not 0 < value < high):
                raise ValueError(f"{name} is {value!r}; it must be a number {'above 0' if high > 1 else 'from 0 to 1'}")
        recorded = teacher_of(self.spec)
        if recorded is None:
            raise ValueError(f"teacher is {self.options.teacher!r}; it must be a run, such as results/language/topk-s0")
        self.student = make_single(self.base_spec(), task, seed, sizing=sizing)
        # In a tuple, so that it does not turn up among this arm's modules.
        self._teacher = (make_arm(recorded.spec, task, recorded.seed, sizing=sizing),)
        self._recorded: Recorded | None = recorded
        self._train: Batch | None = None

    @property
    def template(self) -> SingleBackbone:
        return self.student

    @property
    def teacher(self) -> Arm:
        """The teacher, trained from the first `loss` on: what has learnt can be used without it."""
        return self._teacher[0]

    def prepare(self, train: Batch) -> None:
        self.student.prepare(train)
        self._train = train

    def taught(self, batch: Batch) -> Prediction:
        """What the teacher makes of a batch."""
        if self._recorded is not None:
            assert self._train is not None
            device = batch.inputs.device
            self.teacher.to(device)
            # A resumed run comes here at another step, and must draw the same numbers after it.
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                restore(self.teacher, self._recorded.state(), self._train)
            self.teacher.requires_grad_(False).eval()
            self._recorded = self._train = None
        with torch.no_grad():
            return self.teacher.predict(batch)

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        if not self.options.weight:
            return self.student.loss(batch, index)
        taught = self.taught(batch)
        outputs, routings = self.student.answers(batch)
        own = self.student.step_loss(batch, outputs, routings)
        apart = distance(self.task, outputs, taught.outputs, self.options.temperature)
        return replace(
            own,
            task_weight=1 - self.options.weight,
            flops=own.flops + taught.flops,
            penalties={"distillation": Penalty(apart, self.options.weight), **own.penalties},
        )

    def predict(self, batch: Batch) -> Prediction:
        return self.student.predict(batch)

    def update(self) -> None:
        self.student.update()

    def counts(self) -> Sequence[Tensor]:
        return self.student.counts()

    # What it costs

    def flops_per_example(self) -> float | None:
        return self.student.flops_per_example()

    def train_flops_per_example(self) -> float | None:
        asked = self.teacher.flops_per_example() if self.options.weight else 0.0
        return None if asked is None else self.student.train_flops_per_example() + asked

    @property
    def active_params(self) -> int:
        return self.student.active_params


def distance(task: Task, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far a student's outputs (B, ..., K) are from its teacher's, a mean over examples and positions.

    Classes: T^2 times the divergence of the softened student from the softened teacher, in nats (Hinton et al. 2015, whose
    cross-entropy differs from it by the teacher's entropy, a constant). Regression: the mean squared difference.
    """
    student, teacher = student.float(), teacher.float()
    if task.kind == "regression":
        return (student - teacher).square().mean()
    log_student, log_teacher = ((outputs / temperature).log_softmax(-1) for outputs in (student, teacher))
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1).mean()
