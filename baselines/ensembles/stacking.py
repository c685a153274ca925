"""Stacking: what to do with the members' predictions is learned from examples that they were not trained on.

Axes: L members, J folds, N training examples, B examples of a batch, K outputs, P = L * K inputs of the combiner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from routelab.baselines.backbone_arm import SingleBackbone, whole
from routelab.baselines.base import ArmSpec, Prediction
from routelab.baselines.ensembles.ensemble_base import PASS, MemberArm, MemberOptions, member_seed
from routelab.baselines.ensembles.member_networks import Networks, networks_of
from routelab.core.flops import Flops
from routelab.core.seeds import key
from routelab.data.task import Batch, Task

ITERATIONS = 200


@dataclass(frozen=True)
class StackingOptions(MemberOptions):
    """folds: J. penalty: weight of the combiner's squared coefficients, for a loss that is a sum over the examples."""

    members: int = 4
    folds: int = 4
    penalty: float = 1.0


class Stacking(MemberArm):
    """Stacked generalisation (Wolpert 1992; for regression Breiman 1996, Stacked regressions).

    Beside the L members there are J more of each, trained on all but one fold of the training split; all (J + 1) L train side
    by side, and Omega's rows are 1 for the members and 0 on the fold that is left out for the others. Each example is then
    predicted by those that were not shown it, and from these predictions a combiner is fitted: multinomial logistic regression
    on the members' log probabilities, or ridge regression on their values. Prediction asks the L members and the combiner.

    Folds, their passes and the combiner's fit are charged as training, so that a run costs J + 1 times an ensemble's.

    Options: `members` (4), `base` (dense), `folds` (4), `penalty` (1.0); see `MemberOptions`. Not for language models.
    """

    options_type = StackingOptions
    weight: Tensor
    bias: Tensor
    fitted: Tensor

    @classmethod
    def suggest(cls, trial: Any, spec: ArmSpec) -> dict[str, Any]:
        """The members, and the weight of the combiner's squared coefficients."""
        return super().suggest(trial, spec) | {"options.penalty": trial.suggest_float("options.penalty", 0.01, 100.0, log=True)}

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        self.folds = whole("folds", self.options.folds)
        if self.folds < 2:
            raise ValueError("folds is 1; it must be at least 2, for examples that a member was not trained on")
        if not 0 < self.options.penalty < math.inf:
            raise ValueError(f"penalty is {self.options.penalty}; it must be above 0 and finite")
        super().build(task, seed, sizing=sizing)
        self.register_buffer("weight", torch.zeros(self.count * task.outputs, task.outputs))
        self.register_buffer("bias", torch.zeros(task.outputs))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def check(self, task: Task) -> None:
        if task.kind == "language":
            raise ValueError(
                "stacking's combiner has a coefficient for every member, byte and predicted byte, fitted to every training "
                "token; ensemble and bagging take every task"
            )

    def networks(self, members: list[SingleBackbone]) -> Networks:
        copies = [self._member(self.base_spec(), number) for _ in range(self.folds) for number in range(self.count)]
        return networks_of([*members, *copies], self.template)

    @property
    def streams(self) -> Sequence[int]:
        return [member_seed(self.seed, number) for number in range(self.count)] * (self.folds + 1)

    def weights(self, examples: int) -> Tensor:
        order = torch.randperm(examples, generator=torch.Generator().manual_seed(key(self.seed, "folds")))
        fold_N = torch.empty(examples, dtype=torch.int64).scatter_(0, order, torch.arange(examples) % self.folds)
        shown_JN = (fold_N != torch.arange(self.folds).unsqueeze(1)).float()
        return torch.cat([torch.ones(self.count, examples), shown_JN.repeat_interleave(self.count, 0)])

    def finish(self, stage: int, train: Batch) -> Flops | None:
        inputs_NP = torch.empty(len(train), self.weight.shape[0], dtype=torch.float64, device=train.inputs.device)
        spent = Flops()
        for fold in range(self.folds):
            rows = slice((fold + 1) * self.count, (fold + 2) * self.count)
            unseen = (self.omega.value[rows.start] == 0).nonzero().squeeze(1)
            for part in unseen.split(PASS):
                out = self.members(train.select(part), False, rows)
                inputs_NP[part] = combiner_inputs(self.task, out.values)
                spent += out.flops
        fit = ridge if self.task.kind == "regression" else logistic
        weight, bias, cost = fit(inputs_NP, train.targets, self.task.outputs, self.options.penalty)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.fitted.fill_(True)
        return spent + Flops(cost, cost)

    def predict(self, batch: Batch) -> Prediction:
        out = self.members(batch, False, slice(0, self.count))
        average = self.prediction(batch, out)
        if not self.fitted:
            return average
        values = combiner_inputs(self.task, out.values) @ self.weight.double() + self.bias
        cost = self._combining(len(batch))
        flops = out.flops + Flops(cost, cost)
        return Prediction(values.float(), flops, average.routings, average.positions, average.groups, members=average.members)

    def _combining(self, examples: int) -> float:
        return 2.0 * examples * self.count * self.task.outputs**2

    def flops_per_example(self) -> float | None:
        return self.count * self.template.flops_per_example() + self._combining(1)

    def train_flops_per_example(self) -> float | None:
        return (self.folds + 1) * self.count * self.template.train_flops_per_example()

    @property
    def total_params(self) -> int:
        """Of what predicts: the copies trained on parts are done with."""
        return self.count * self.template.total_params + (self.count * self.task.outputs + 1) * self.task.outputs

    @property
    def active_params(self) -> int:
        return self.count * self.template.active_params + (self.count * self.task.outputs + 1) * self.task.outputs

    def figures(self, train: Batch) -> tuple[dict[str, Any], Flops | None]:
        share = self.weight.view(self.count, -1).abs().sum(1)
        return {"weight_share": (share / share.sum()).tolist()}, None


def combiner_inputs(task: Task, values_LBK: Tensor) -> Tensor:
    """What the combiner sees of the members' outputs, (B, L * K) in float64: log probabilities, or values."""
    values = values_LBK.double()
    values = values if task.kind == "regression" else values.log_softmax(-1)
    return values.transpose(0, 1).flatten(1)


def logistic(x_NP: Tensor, targets_N: Tensor, outputs: int, penalty: float) -> tuple[Tensor, Tensor, float]:
    """Multinomial logistic regression: weight (P, K), bias (K,), and the FLOPs of the fit.

    Minimises the summed cross-entropy plus penalty / 2 * |weight|^2 (scikit-learn's LogisticRegression with C = 1 / penalty)
    by L-BFGS, in float64.
    """
    # Metrics are computed in inference mode, training is not, and nothing here may depend on which it is.
    with torch.inference_mode(False), torch.enable_grad():
        inputs = x_NP.detach().clone()
        weight = torch.zeros(inputs.shape[1], outputs, dtype=torch.float64, device=inputs.device, requires_grad=True)
        bias = torch.zeros(outputs, dtype=torch.float64, device=inputs.device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )
        evaluations = 0

        def closure() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            optimizer.zero_grad()
            loss = F.cross_entropy(inputs @ weight + bias, targets_N, reduction="sum") + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return weight.detach(), bias.detach(), 4.0 * evaluations * inputs.numel() * outputs


def ridge(x_NP: Tensor, targets: Tensor, outputs: int, penalty: float) -> tuple[Tensor, Tensor, float]:
    """Ridge regression on centred columns: weight (P, K), bias (K,), and the FLOPs of the normal equations."""
    wanted = targets.double().view(len(x_NP), outputs)
    mean_P, mean_K = x_NP.mean(0), wanted.mean(0)
    x, y = x_NP - mean_P, wanted - mean_K
    inputs = x.shape[1]
    eye = torch.eye(inputs, dtype=torch.float64, device=x.device)
    weight = torch.linalg.solve(x.T @ x + penalty * eye, x.T @ y)
    return weight, mean_K - mean_P @ weight, 2.0 * len(x) * inputs * (inputs + outputs) + 2 * inputs**3 / 3
