"""What a loss and an accuracy do not say: calibration, how the members of an ensemble differ, and what each domain's are.

All of it is sums over batches, so that any number of batches and processes adds up to the same figures.

Axes: B examples, K outputs, M members, T predictions (an example's, or one for each of its positions), J bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from routelab.baselines.base import Prediction
from routelab.data.task import Batch, Task

BINS = 15


def calibration_sums(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Sums for `calibration`; none for regression, whose outputs are no distributions. float64."""
    if task.kind == "regression":
        return {}
    log_TK = outputs.double().flatten(0, -2).log_softmax(-1)
    probability_TK, wanted_T = log_TK.exp(), targets.flatten().long()
    confidence_T, chosen_T = probability_TK.max(-1)
    # Bins are open below and closed above, as in the papers; 0 never occurs.
    bin_T = (confidence_T * BINS).ceil().long().clamp(1, BINS) - 1
    truth_T = probability_TK.gather(1, wanted_T.unsqueeze(1)).squeeze(1)
    empty = torch.zeros(BINS, dtype=torch.float64, device=outputs.device)
    return {
        "predictions": torch.full_like(truth_T.sum(), len(truth_T)),
        "nll": -log_TK.gather(1, wanted_T.unsqueeze(1)).sum(),
        "brier": (probability_TK.square().sum(-1) - 2 * truth_T + 1).sum(),
        "confidence_J": empty.index_add(0, bin_T, confidence_T),
        "correct_J": empty.index_add(0, bin_T, (chosen_T == wanted_T).double()),
    }


def calibration(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """`nll` in nats, `brier` (the sum over classes, 0 to 2; Brier 1950) and `ece`, the expected calibration error over 15
    bins of equal width (Naeini 2015; Guo 2017); {} without sums."""
    if not sums:
        return {}
    count = float(sums["predictions"])
    return {
        "nll": float(sums["nll"]) / count,
        "brier": float(sums["brier"]) / count,
        "ece": float((sums["confidence_J"] - sums["correct_J"]).abs().sum()) / count,
    }


def diversity_sums(task: Task, members: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Sums for `diversity`, from the members' outputs (M, B, ...)."""
    count = len(members)
    together = targets.expand(count, *targets.shape).flatten(0, 1)
    sums = {f"member/{name}": value for name, value in task.statistics(members.flatten(0, 1), together).items()}
    if task.kind == "regression":
        value_MT = members.double().flatten(1)
        error_MT = value_MT - targets.double().flatten()
        # Of all ordered pairs: sum (a - b)^2 = 2 M sum a^2 - 2 (sum a)^2.
        apart = 2 * (count * value_MT.square().sum() - value_MT.sum(0).square().sum())
    else:
        chosen_MT = members.argmax(-1).flatten(1)
        error_MT = (chosen_MT != targets.flatten()).double()
        apart = torch.stack([(chosen_MT != chosen_T).double().sum() for chosen_T in chosen_MT]).sum()
    return sums | {
        "predictions": torch.full_like(apart, error_MT.shape[1]),
        "apart": apart,
        "error_M": error_MT.sum(1),
        "error_MM": error_MT @ error_MT.T,
    }


def diversity(task: Task, sums: Mapping[str, Tensor]) -> dict[str, float]:
    """How the members of an ensemble differ; {} without sums.

    disagreement: the share of predictions on which two members differ, or for regression their mean squared difference, over
    all pairs. error_correlation: the mean over pairs of the correlation of their errors (1 or 0, or the residual); a member
    that errs always or never correlates with none and is left out. member_loss, member_METRIC: of a member, on average.
    """
    if not sums:
        return {}
    members, count = len(sums["error_M"]), float(sums["predictions"])
    mean_M = sums["error_M"] / count
    covariance_MM = sums["error_MM"] / count - mean_M.unsqueeze(0) * mean_M.unsqueeze(1)
    deviation_M = covariance_MM.diagonal().clamp_min(0).sqrt()
    pairs_MM = (deviation_M.unsqueeze(0) * deviation_M.unsqueeze(1)).clamp_min(1e-12)
    varies_M = deviation_M > 1e-6
    counted_MM = (varies_M.unsqueeze(0) & varies_M.unsqueeze(1)).fill_diagonal_(False)
    found = {"members": float(members)}
    if members > 1:
        found["disagreement"] = float(sums["apart"]) / count / (members * (members - 1))
    if counted_MM.any():
        found["error_correlation"] = float((covariance_MM / pairs_MM)[counted_MM].mean())
    of_members = {name.removeprefix("member/"): value for name, value in sums.items() if name.startswith("member/")}
    return found | {f"member_{name}": value for name, value in task.summary(of_members).items()}


def domain_sums(task: Task, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The task's sums for each domain, as "NUMBER/NAME"; none without domains."""
    if batch.domain is None or not task.domains:
        return {}
    found: dict[str, Tensor] = {}
    for number in range(task.domains):
        mine = batch.domain == number
        sums = task.statistics(outputs[mine], batch.targets[mine])
        found |= {f"{number}/{name}": value for name, value in sums.items()}
    return found


def by_domain(task: Task, sums: Mapping[str, Tensor]) -> dict[int, dict[str, float]]:
    """Loss and metric of each domain that has examples, by its number."""
    parts: dict[int, dict[str, Tensor]] = {}
    for name, value in sums.items():
        number, _, rest = name.partition("/")
        parts.setdefault(int(number), {})[rest] = value
    return {number: task.summary(each) for number, each in parts.items() if float(each["count"])}


def close_sums(task: Task, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
    """All sums of a batch that `close_look` makes figures of, under keys of their own."""
    targets = batch.targets
    sums = {f"calibration/{name}": value for name, value in calibration_sums(task, prediction.outputs, targets).items()}
    if prediction.members is not None:
        sums |= {f"diversity/{name}": value for name, value in diversity_sums(task, prediction.members, targets).items()}
    return sums | {f"domain/{name}": value for name, value in domain_sums(task, prediction.outputs, batch).items()}


def close_look(task: Task, sums: Mapping[str, Tensor], domain_names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """`calibration`, `diversity` and `by_domain` (a domain's name -> loss and metric) from the sums of any number of
    batches."""
    parts: dict[str, dict[str, Tensor]] = {"calibration": {}, "diversity": {}, "domain": {}}
    for name, value in sums.items():
        group, _, rest = name.partition("/")
        if group in parts:
            parts[group][rest] = value
    named = {domain_names[number]: found for number, found in by_domain(task, parts["domain"]).items()}
    return {
        "calibration": calibration(parts["calibration"]),
        "diversity": diversity(task, parts["diversity"]),
        "by_domain": named,
    }
