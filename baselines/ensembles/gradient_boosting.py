"""Gradient boosting with networks.

Axes: M members, N training examples, B examples of a batch, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.baselines.base import ArmSpec, Prediction, StepLoss
from routelab.baselines.ensembles.ensemble_base import MemberOptions, PerExample, member_seed
from routelab.baselines.ensembles.stagewise import StageWise
from routelab.core.flops import Flops
from routelab.core.seeds import key
from routelab.data.task import Batch, Task

LONGEST = 100.0
"""Where the line search ends: scores of examples that are all right already fall for ever."""


@dataclass(frozen=True)
class GradientBoostingOptions(MemberOptions):
    """shrinkage: the share of the best step that is taken. subsample: the share of the examples that a stage is shown."""

    shrinkage: float = 0.35
    subsample: float = 1.0


class GradientBoosting(StageWise):
    """Gradient boosting (Friedman 2001, Greedy function approximation) of networks instead of trees.

    F_0 is the logarithm of the class shares, or the mean. Stage m fits h_m by squared error to the residual y - softmax(F)
    (regression: y - F), then rho_m = argmin of the training loss of F + rho h_m, by a line search, and F grows by
    shrinkage * rho_m h_m. The scores F of the training split are kept (a buffer), so a stage costs one pass over it and not
    one for each earlier member. One line search serves all classes, where Friedman's trees have one for each leaf.

    Row m of Omega says which examples stage m is shown: all, or a random `subsample` (Friedman 2002).

    Options: `members` (8), `base` (dense), `shrinkage` (0.35), `subsample` (1.0); see `MemberOptions`.
    """

    options_type = GradientBoostingOptions
    rho: Tensor
    start: Tensor

    @classmethod
    def suggest(cls, trial: Any, spec: ArmSpec) -> dict[str, Any]:
        """The members, the share of a step that is taken, and the share of the examples that a stage is shown."""
        return super().suggest(trial, spec) | {
            "options.shrinkage": trial.suggest_float("options.shrinkage", 0.1, 1.0, log=True),
            "options.subsample": trial.suggest_float("options.subsample", 0.5, 1.0),
        }

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        super().build(task, seed, sizing=sizing)
        for name in ("shrinkage", "subsample"):
            if not 0 < getattr(self.options, name) <= 1:
                raise ValueError(f"{name} is {getattr(self.options, name)}; it must be above 0 and at most 1")
        self.register_buffer("rho", torch.zeros(self.count))
        self.register_buffer("start", torch.zeros(task.outputs))
        self.scores = PerExample()

    def check(self, task: Task) -> None:
        if task.kind == "language":
            raise ValueError(
                "gradient boosting keeps a score for every training token and every byte that it could be, which no text "
                "leaves room for; ensemble and bagging take every task"
            )

    def weights(self, examples: int) -> Tensor:
        shown = max(1, round(self.options.subsample * examples))
        rows = torch.zeros(self.count, examples)
        for number in range(self.count):
            generator = torch.Generator().manual_seed(key(member_seed(self.seed, number), "subsample"))
            rows[number, torch.randperm(examples, generator=generator)[:shown]] = examples / shown
        return rows

    def prepare(self, train: Batch) -> None:
        super().prepare(train)
        self.start = first_scores(self.task, train.targets)
        self.scores.value = self.start.repeat(len(train), 1)

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        out = self.members.one(self.current, batch)
        wanted_BK = residuals(self.task, self.scores.value[index], batch.targets)
        each_B = (out.values[0].float() - wanted_BK).square().mean(-1)
        weighted = (self.omega.value[self.stage, index] * each_B).mean()
        return StepLoss(weighted, out.flops, out.penalties, out.routings)

    def finish(self, stage: int, train: Batch) -> Flops | None:
        step_NK, cost = self.outputs_on(train)
        rho = line_search(self.task, self.scores.value, step_NK, train.targets)
        self.rho[stage] = rho
        self.scores.value += self.options.shrinkage * rho * step_NK
        self.finished += 1
        return cost

    def predict(self, batch: Batch) -> Prediction:
        finished = int(self.finished)
        groups, positions = self.template.network.layout(len(batch))
        if not finished:
            return Prediction(self.start.expand(len(batch), -1), Flops(0.0, 0.0))
        out = self.together(batch, finished)
        step_M = self.options.shrinkage * self.rho[:finished]
        values = self.start + (step_M.view(-1, 1, 1) * out.values.float()).sum(0)
        return Prediction(values, out.flops, out.routings, positions, groups)

    def figures(self, train: Batch) -> tuple[dict[str, Any], Flops | None]:
        return {"rho": self.rho[: int(self.finished)].tolist()}, None


def first_scores(task: Task, targets: Tensor) -> Tensor:
    """The best constant, (K,): the logarithm of the class shares, or the mean. Classes without an example count as half one."""
    if task.kind == "regression":
        return targets.float().reshape(len(targets), task.outputs).mean(0)
    counts = torch.bincount(targets, minlength=task.outputs).float().clamp_min(0.5)
    return (counts / counts.sum()).log()


def residuals(task: Task, scores: Tensor, targets: Tensor) -> Tensor:
    """The negative gradient of an example's loss by its scores, (B, K): y - softmax(F), or y - F."""
    if task.kind == "regression":
        return targets.float().view_as(scores) - scores
    return F.one_hot(targets, task.outputs) - scores.softmax(-1)


def line_search(task: Task, scores: Tensor, step: Tensor, targets: Tensor) -> float:
    """The rho from 0 to `LONGEST` that makes the mean loss of `scores + rho * step` least. scores, step (N, K).

    The loss is convex in rho, so it is where the slope changes its sign, found by halving; for squared errors in one formula.
    """
    scores, step = scores.double(), step.double()
    if task.kind == "regression":
        square = step.square().sum()
        best = (residuals(task, scores, targets).double() * step).sum() / square.clamp_min(1e-300)
        return float(best.clamp(0.0, LONGEST))

    def rises(rho: float) -> bool:
        return bool((residuals(task, scores + rho * step, targets) * step).sum() < 0)

    low, high = 0.0, LONGEST
    if rises(low):
        return low
    if not rises(high):
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) else (middle, high)
    return (low + high) / 2
