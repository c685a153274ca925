"""Calibration equals torchmetrics', diversity a direct computation, both from sums of batches."""

import itertools

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from routelab.baselines.base import Prediction
from routelab.baselines.evaluation_metrics import close_look, close_sums
from routelab.core.flops import Flops
from routelab.data.task import Batch, InputSpec, Task

KINDS = {"classification": 4, "regression": 2, "language": 4}


def drawn(kind, members=3, size=60):
    random = torch.Generator().manual_seed(0)
    outputs = KINDS[kind]
    shape = (size, 5, outputs) if kind == "language" else (size, outputs)
    values = 2 * torch.randn(members, *shape, generator=random)
    targets = torch.randn(shape, generator=random) if kind == "regression" else torch.randint(4, shape[:-1], generator=random)
    return Task("toy", kind, InputSpec("table", (4,)), outputs), values, targets


def look(task, values, targets, parts=1):
    """Figures from so many batches, of uneven sizes."""
    sums = {}
    for index in torch.arange(len(targets)).tensor_split([7, 30][: parts - 1]):
        part = values[:, index]
        for name, value in close_sums(
            task, Prediction(part.mean(0), Flops(0, 0), members=part), Batch(index, targets[index])
        ).items():
            sums[name] = sums.get(name, 0.0) + value
    return close_look(task, sums)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_add_up(kind):
    task, values, targets = drawn(kind)
    whole, parts = look(task, values, targets), look(task, values, targets, 3)
    for group in whole:
        assert parts[group] == pytest.approx(whole[group])
    assert bool(whole["calibration"]) == (kind != "regression")


@pytest.mark.parametrize("kind", ["classification", "language"])
def test_calibration(kind):
    task, values, targets = drawn(kind)
    found = look(task, values, targets)["calibration"]
    probability, wanted = values.mean(0).flatten(0, -2).softmax(-1), targets.flatten()
    oracle = multiclass_calibration_error(probability, wanted, num_classes=4, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(oracle.item(), abs=1e-6)
    assert found["nll"] == pytest.approx(-probability[range(len(wanted)), wanted].log().mean().item(), rel=1e-5)
    truth = torch.nn.functional.one_hot(wanted, 4)
    assert found["brier"] == pytest.approx((probability - truth).square().sum(-1).mean().item(), rel=1e-5)


def test_perfect_and_wrong_by_hand():
    """Two sure and right, two sure and wrong: half of the confidence is too much, and a wrong one's Brier score is 2."""
    task = Task("toy", "classification", InputSpec("table", (1,)), 2)
    sure = torch.tensor([[50.0, 0.0]] * 4)
    found = look(task, sure.unsqueeze(0), torch.tensor([0, 0, 1, 1]))["calibration"]
    assert found == pytest.approx({"ece": 0.5, "brier": 1.0, "nll": 25.0})


@pytest.mark.parametrize("kind", KINDS)
def test_diversity_is_a_direct_computation(kind):
    task, values, targets = drawn(kind)
    found = look(task, values, targets)["diversity"]
    pairs = list(itertools.combinations(range(3), 2))
    if kind == "regression":
        errors = (values - targets).flatten(1)
        apart = [(values[a] - values[b]).square().mean().item() for a, b in pairs]
    else:
        errors = (values.argmax(-1) != targets).float().flatten(1)
        apart = [(values[a].argmax(-1) != values[b].argmax(-1)).float().mean().item() for a, b in pairs]
    correlation = torch.corrcoef(errors)
    assert found["disagreement"] == pytest.approx(sum(apart) / 3, rel=1e-5)
    assert found["error_correlation"] == pytest.approx(sum(correlation[a, b].item() for a, b in pairs) / 3, abs=1e-6)
    loss = sum(task.loss(values[m], targets).mean().item() for m in range(3)) / 3
    assert found["member_loss"] == pytest.approx(loss, rel=1e-5)
    if kind == "classification":
        assert found["member_accuracy"] == pytest.approx(1 - errors.mean().item())


def test_members_that_never_err_correlate_with_none():
    task = Task("toy", "classification", InputSpec("table", (1,)), 2)
    values = torch.tensor([[[9.0, 0.0]] * 3, [[9.0, 0.0]] * 3])
    found = look(task, values, torch.tensor([0, 0, 0]))["diversity"]
    assert found["disagreement"] == 0.0
    assert "error_correlation" not in found
