"""Bagging: every member sees a bootstrap sample, and what it did not see is a test set of its own.

Axes: M members, N training examples, B examples of a batch, K outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from routelab.baselines.ensembles.ensemble_base import PASS, MemberArm, member_seed
from routelab.core.flops import Flops
from routelab.core.seeds import key
from routelab.data.task import Batch, Task


class Bagging(MemberArm):
    """Bagging (Breiman 1996, Bagging predictors): member m weighs example i as often as it was drawn, N times out of N.

    A row of Omega is Multinomial(N, 1/N), so about 36.8% of its entries are 0: those examples are out of the member's bag.
    The average over the members that have an example out of their bag is an estimate of the error on new data which costs no
    data; the record holds it (`figures`: `oob_loss`, the metric as `oob_...`, and `oob_share`, the examples that are out of
    at least one bag). Its pass over the training split is charged as evaluation. Probabilities are averaged; the paper's
    classifiers vote.

    Options: `members` (8), `base` (dense); see `MemberOptions`.
    """

    def weights(self, examples: int) -> Tensor:
        return torch.stack([bootstrap(examples, member_seed(self.seed, number)) for number in range(self.count)])

    @torch.no_grad()
    def figures(self, train: Batch) -> tuple[dict[str, Any], Flops | None]:
        sums: dict[str, Tensor] = {}
        spent = Flops()
        for start in range(0, len(train), PASS):
            here = slice(start, min(start + PASS, len(train)))
            batch = train.select(here)
            out = self.members(batch, False)
            spent += out.flops
            unseen_MB = self.omega.value[:, here] == 0
            known = unseen_MB.any(0)
            outputs = out_of_bag(self.task, out.values, unseen_MB)[known]
            for name, value in self.task.statistics(outputs, batch.targets[known]).items():
                sums[name] = sums.get(name, 0.0) + value
        found = {f"oob_{name}": value for name, value in self.task.summary(sums).items()}
        return found | {"oob_share": float(sums["count"]) / len(train)}, spent


def bootstrap(examples: int, seed: int) -> Tensor:
    """How often each of N examples is drawn in N draws with replacement, (N,) as floats."""
    generator = torch.Generator().manual_seed(key(seed, "bootstrap"))
    return torch.bincount(torch.randint(examples, (examples,), generator=generator), minlength=examples).float()


def out_of_bag(task: Task, values: Tensor, unseen_MB: Tensor) -> Tensor:
    """Outputs (B, ..., K) averaged over the members that did not see an example; meaningless where all of them did.

    values (M, B, ..., K): the members' outputs. Values are averaged for regression, else probabilities.
    """
    share = unseen_MB.to(values.dtype) / unseen_MB.sum(0).clamp_min(1)
    share = share.view(*share.shape, *[1] * (values.ndim - 2))
    if task.kind == "regression":
        return (share * values.float()).sum(0)
    return (share.log() + values.float().log_softmax(-1)).logsumexp(0)
