"""AdaBoost for any number of classes, and for values.

Axes: M members, N training examples, B examples of a batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.baselines.base import ArmSpec, Prediction, StepLoss
from routelab.baselines.ensembles.ensemble_base import MemberOptions, member_losses
from routelab.baselines.ensembles.stagewise import StageWise
from routelab.core.flops import Flops
from routelab.data.task import Batch, Task


@dataclass(frozen=True)
class AdaBoostOptions(MemberOptions):
    """shrinkage: what every vote is multiplied with (scikit-learn's `learning_rate`). resample: whether the examples of a batch
    are drawn by their weights; False: the batches are everybody's, and the weights multiply the losses."""

    shrinkage: float = 0.25
    resample: bool = True


class AdaBoost(StageWise):
    """AdaBoost by SAMME (Zhu, Zou, Rosset and Hastie 2009, Multi-class AdaBoost), in the form that scikit-learn gives it.

    After stage m, err = sum w [wrong] / sum w, and member m votes with alpha = shrinkage * (ln((1 - err) / err) + ln(K - 1)).
    Examples that it gets wrong weigh exp(alpha) times as much in the next stage. Boosting ends before its budget if err is 0
    (that member counts, with a vote of 1) or at least 1 - 1/K (it does not count; if it is the first, the run fails).

    Row m of Omega holds the weights of stage m, with a mean of 1. The outputs are the votes, sum_m alpha_m [member m says k],
    as logits: for SAMME's exponential loss they are log probabilities up to a constant. They rank classes well and are far
    too sure of themselves, so compare accuracies rather than losses.

    Regression takes AdaBoost.R2 (Drucker 1997) with the linear loss, in scikit-learn's form (`r2`): a member's error is the
    weighted mean of |y - h(x)| over its largest, boosting ends if that is at least 1/2, and the prediction is the median of
    the members' values by their votes.

    From the second stage on, every batch is drawn by the weights, with replacement, which Schwenk and Bengio (2000, Boosting
    neural networks) compare with weights in the loss. With those a few examples soon outweigh the rest, hardly one of them lies
    in a batch, and later members fit nothing; docs/ensembles.md has figures, and where the default shrinkage comes from.

    Options: `members` (8), `base` (dense), `shrinkage` (0.25), `resample` (true); see `MemberOptions`. Not for language models.
    """

    options_type = AdaBoostOptions
    alpha: Tensor
    error: Tensor

    @classmethod
    def suggest(cls, trial: Any, spec: ArmSpec) -> dict[str, Any]:
        """The members, and what their votes are multiplied with."""
        return super().suggest(trial, spec) | {
            "options.shrinkage": trial.suggest_float("options.shrinkage", 0.1, 1.0, log=True)
        }

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        super().build(task, seed, sizing=sizing)
        for name in ("alpha", "error"):
            self.register_buffer(name, torch.zeros(self.count))
        self._done = False
        if not 0 < self.options.shrinkage < math.inf:
            raise ValueError(f"shrinkage is {self.options.shrinkage}; it must be above 0 and finite")

    def check(self, task: Task) -> None:
        if task.kind == "language":
            raise ValueError(
                "AdaBoost weighs whole examples by whether they are wrong, and a text has a right and a wrong for every byte; "
                "ensemble and bagging take every task"
            )

    def prepare(self, train: Batch) -> None:
        super().prepare(train)
        self._train = train

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        if self.stage == 0 or not self.options.resample:
            return super().loss(batch, index)
        # By torch's generator, which the loop seeds for every step.
        drawn_B = torch.multinomial(self.omega.value[self.stage], len(index), replacement=True)
        out = self.members.one(self.current, self._train.select(drawn_B))
        each_MB = member_losses(self.task, out.values, self._train.targets[drawn_B], False)
        return StepLoss(each_MB.mean(), out.flops, out.penalties, out.routings)

    def finish(self, stage: int, train: Batch) -> Flops | None:
        values, cost = self.outputs_on(train)
        if self.task.kind == "regression":
            error_N = (values - train.targets.view_as(values)).abs().mean(1)
            verdict = r2(self.omega.value[stage], error_N, self.options.shrinkage)
            if verdict.alpha is None and stage == 0:
                # With nothing to be compared to, the only member is the ensemble.
                verdict = Verdict(verdict.error, 1.0, None)
        else:
            wrong_N = values.argmax(-1) != train.targets
            verdict = samme(self.omega.value[stage], wrong_N, self.task.outputs, self.options.shrinkage)
        self.error[stage] = verdict.error
        if verdict.alpha is None:
            if stage == 0:
                raise ValueError(
                    f"the first member errs on {verdict.error:.3f}, no better than guessing: nothing can be boosted"
                )
        else:
            self.alpha[stage] = verdict.alpha
            self.finished += 1
        self._done = verdict.weight_N is None
        if verdict.weight_N is not None and stage + 1 < self.count:
            self.omega.value[stage + 1] = verdict.weight_N
        return cost

    @property
    def done(self) -> bool:
        return self._done

    def predict(self, batch: Batch) -> Prediction:
        finished = int(self.finished)
        # Before there is a vote, the first member's own opinion.
        out = self.together(batch, max(finished, 1))
        groups, positions = self.template.network.layout(len(batch))
        combine = weighted_median if self.task.kind == "regression" else votes
        values = combine(out.values, self.alpha[:finished]) if finished else out.values[0]
        return Prediction(values, out.flops, out.routings, positions, groups, members=out.values)

    def figures(self, train: Batch) -> tuple[dict[str, Any], Flops | None]:
        kept = int(self.finished)
        found: dict[str, Any] = {"members_kept": kept, "alpha": self.alpha[:kept].tolist(), "error": self.error[:kept].tolist()}
        return found, None


@dataclass(frozen=True)
class Verdict:
    """What boosting makes of a stage. alpha: None if the member does not count; weight_N: None if boosting ends."""

    error: float
    alpha: float | None
    weight_N: Tensor | None


def samme(weight_N: Tensor, wrong_N: Tensor, classes: int, shrinkage: float = 1.0) -> Verdict:
    """One round of SAMME: the vote of the member that is wrong where `wrong_N` says, and the weights of the next round.

    weight_N: of any scale; the new ones have a mean of 1.
    """
    weight = weight_N.double()
    weight = weight / weight.sum()
    error = float(weight[wrong_N].sum())
    if error <= 0:
        return Verdict(0.0, 1.0, None)
    if error >= 1 - 1 / classes:
        return Verdict(error, None, None)
    alpha = shrinkage * (math.log((1 - error) / error) + math.log(classes - 1))
    # The largest exponent is 0, for an alpha that exp would not bear.
    raised = weight * (alpha * (wrong_N.double() - 1)).exp()
    return Verdict(error, alpha, (raised * len(raised) / raised.sum()).to(weight_N.dtype))


def r2(weight_N: Tensor, error_N: Tensor, shrinkage: float = 1.0) -> Verdict:
    """One round of AdaBoost.R2 with the linear loss, from the absolute errors of a member."""
    weight = weight_N.double()
    weight = weight / weight.sum()
    most = error_N[weight_N > 0].max()
    if most <= 0:
        return Verdict(0.0, 1.0, None)
    part = error_N.double() / most
    error = float((weight * part).sum())
    if error >= 0.5:
        return Verdict(error, None, None)
    beta = error / (1 - error)
    raised = weight * beta ** ((1 - part) * shrinkage)
    return Verdict(error, -shrinkage * math.log(beta), (raised * len(raised) / raised.sum()).to(weight_N.dtype))


def weighted_median(values_MBK: Tensor, alpha_M: Tensor) -> Tensor:
    """The least value that, with those below it, has half of the votes, (B, K)."""
    ordered, place = values_MBK.float().sort(dim=0)
    share = alpha_M[place].cumsum(0)
    first = (share >= share[-1:] / 2).float().argmax(0, keepdim=True)
    return ordered.gather(0, first)[0]


def votes(values_MBK: Tensor, alpha_M: Tensor | Sequence[float]) -> Tensor:
    """sum_m alpha_m [k is the first choice of member m], (B, K)."""
    alpha = torch.as_tensor(alpha_M, dtype=torch.float32, device=values_MBK.device)
    chosen_MBK = F.one_hot(values_MBK.argmax(-1), values_MBK.shape[-1]).float()
    return (alpha.view(-1, 1, 1) * chosen_MBK).sum(0)
