"""The systems of 1991 train as the mathematics that the arms use says, one run at a time or many."""

import math

import pytest
import torch
from gradient_descent_1991 import OUTPUTS, Backprop, Criterion, Examples, Mixture, descend

from routelab.baselines.classic_moe.classic_moe_losses import blend, distance, likelihood, posterior

R, N, K = 3, 11, 4
SYSTEMS = [Mixture(3), Backprop(5)]


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(2, N, generator=generator), torch.ones(1, N)])
    return Examples(x, torch.randint(0, K, (N,), generator=generator))


def weights_of(system, scale=1.0):
    drawn = system.start(R, scale, 3, K, torch.Generator().manual_seed(1))
    # A gate that starts at 0 would hide mistakes.
    return [weight + 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) for weight in drawn]


def apply(form, outputs):
    return {"softmax": lambda: form.softmax(-1), "sigmoid": form.sigmoid, "linear": lambda: form}[outputs]()


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_the_mixture_s_gradients_are_autograd_s_of_the_likelihood_error(examples, outputs):
    system, (gate, experts) = Mixture(3), [weight.requires_grad_() for weight in weights_of(Mixture(3))]
    x, d = examples.x_IN.t(), examples.targets_KN.t()
    log_gate = (x @ gate.transpose(1, 2)).log_softmax(-1)
    each = apply((x @ experts.transpose(1, 2)).view(R, N, 3, K), outputs)
    fit = -0.5 * distance(d, each)
    likelihood(log_gate, fit).mean(1).sum().backward()
    found = system.epoch([gate.detach(), experts.detach()], examples.x_IN, examples.targets_KN, outputs)
    for mine, theirs in zip(found.gradients, (gate.grad, experts.grad), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    prediction = blend(log_gate, each).detach()
    torch.testing.assert_close(found.prediction, prediction.transpose(1, 2), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.proportions, log_gate.exp().mean(1).detach())
    torch.testing.assert_close(found.errors["prediction"], (d - prediction).square().sum(-1).mean(-1))
    apart = (posterior(log_gate, fit) * distance(d, each)).sum(-1).mean(-1)
    torch.testing.assert_close(found.errors["experts"], apart.detach())


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_backprop_s_gradients_are_autograd_s_of_half_the_squared_error(examples, outputs):
    lower, upper = [weight.requires_grad_() for weight in weights_of(Backprop(5))]
    x, d = examples.x_IN.t(), examples.targets_KN.t()
    hidden = (x @ lower.transpose(1, 2)).sigmoid()
    out = apply(torch.cat([hidden, torch.ones(R, N, 1)], -1) @ upper.transpose(1, 2), outputs)
    (0.5 * (d - out).square().sum(-1)).mean(1).sum().backward()
    found = Backprop(5).epoch([lower.detach(), upper.detach()], examples.x_IN, examples.targets_KN, outputs)
    for mine, theirs in zip(found.gradients, (lower.grad, upper.grad), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.prediction, out.detach().transpose(1, 2), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_runs_trained_together_are_those_trained_alone(examples, system):
    """Although they stop at different epochs, and one of them has a step that throws it off."""
    start, steps = system.start(R, 1.0, 3, K, torch.Generator().manual_seed(0)), torch.tensor([0.2, 1.0, 1e30])
    criteria = {"loose": Criterion(0.7), "tight": Criterion(0.55, "experts")}
    together = descend(system, start, steps, examples, examples, "softmax", criteria, 400)
    assert together["tight"].epochs.isfinite().sum() == 2
    for run in range(R):
        alone = descend(
            system, [each[run : run + 1] for each in start], steps[run : run + 1], examples, examples, "softmax", criteria, 400
        )
        for name in criteria:
            for field in ("epochs", "train", "test"):
                mine, theirs = getattr(together[name], field)[run], getattr(alone[name], field)[0]
                torch.testing.assert_close(mine, theirs, equal_nan=True)


def test_epochs_are_the_steps_before_the_criterion_first_holds(examples):
    """Counted by taking the steps by hand."""
    system, step = Backprop(5), 0.5
    weights = system.start(1, 1.0, 3, K, torch.Generator().manual_seed(0))
    found = descend(system, weights, torch.tensor([step]), examples, examples, "softmax", {"c": Criterion(0.7)}, 500)["c"]
    taken = 0
    while True:
        now = system.epoch(weights, examples.x_IN, examples.targets_KN, "softmax")
        if now.errors["prediction"].item() <= 0.7:
            break
        weights = [each - step * gradient for each, gradient in zip(weights, now.gradients, strict=True)]
        taken += 1
    assert taken > 5
    assert found.epochs.item() == taken
    assert found.train.item() == pytest.approx((now.prediction[0].argmax(0) == examples.classes).float().mean().item())


def test_far_from_all_experts_the_nearest_is_responsible():
    """Distances of thousands: exp(-½ d) of every expert is 0 in float32."""
    examples = Examples(torch.tensor([[1.0]]), torch.tensor([0]))
    weights = [torch.zeros(1, 2, 1), torch.tensor([[[-100.0], [0.0], [-101.0], [0.0]]])]
    found = Mixture(2).epoch(weights, examples.x_IN, torch.tensor([[1.0], [0.0]]), "linear")
    assert found.errors["experts"].item() == pytest.approx(101**2)
    assert all(gradient.isfinite().all() for gradient in found.gradients)
    assert math.isfinite(found.errors["prediction"].item())
