"""The three errors of 1991 by hand, and their gradients in the paper's closed forms."""

import math

import pytest
import torch

from routelab.baselines.classic_moe.classic_moe_losses import (
    blend,
    competitive,
    coupled,
    distance,
    likelihood,
    log_blend,
    posterior,
)

B, E, K = 7, 3, 4


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    logits, outputs, target = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((B, E), (B, E, K), (B, K))
    )
    return logits.requires_grad_(), outputs.requires_grad_(), target


def test_errors_by_hand():
    """Proportions 1/4 and 3/4, outputs 0 and 3, target 1: distances 1 and 4, blend 9/4."""
    log_gate = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    outputs, target = torch.tensor([[[0.0], [3.0]]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
    apart = distance(target, outputs)
    assert apart.tolist() == [[1.0, 4.0]]
    assert blend(log_gate, outputs).item() == pytest.approx(2.25)
    assert coupled(log_gate, target, outputs).item() == pytest.approx(1.25**2)
    assert competitive(log_gate, apart).item() == pytest.approx(0.25 * 1 + 0.75 * 4)
    parts = [0.25 * math.exp(-0.5), 0.75 * math.exp(-2.0)]
    assert likelihood(log_gate, -0.5 * apart).item() == pytest.approx(-math.log(sum(parts)))
    assert posterior(log_gate, -0.5 * apart).tolist()[0] == pytest.approx([part / sum(parts) for part in parts])


def test_gradients_of_the_likelihood_error_are_the_closed_forms(drawn):
    """dE/do_i = -h_i (d - o_i) and dE/ds_i = p_i - h_i."""
    logits, outputs, target = drawn
    log_gate, fit = logits.log_softmax(-1), -0.5 * distance(target, outputs)
    likelihood(log_gate, fit).sum().backward()
    h = posterior(log_gate, fit).detach()
    torch.testing.assert_close(outputs.grad, -h.unsqueeze(-1) * (target.unsqueeze(-2) - outputs.detach()))
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - h)


def test_gradients_of_the_competitive_error_are_the_closed_forms(drawn):
    """dE/do_i = -2 p_i (d - o_i) and dE/ds_i = p_i (‖d - o_i‖² - E)."""
    logits, outputs, target = drawn
    error = competitive(logits.log_softmax(-1), distance(target, outputs))
    error.sum().backward()
    p, apart = logits.detach().softmax(-1), distance(target, outputs).detach()
    torch.testing.assert_close(outputs.grad, -2 * p.unsqueeze(-1) * (target.unsqueeze(-2) - outputs.detach()))
    torch.testing.assert_close(logits.grad, p * (apart - error.detach().unsqueeze(-1)))


def test_gradients_of_the_coupled_error_are_the_closed_forms(drawn):
    """dE/do_i = -2 p_i (d - y): every expert is pulled by the residual of the whole, whatever its own."""
    logits, outputs, target = drawn
    log_gate = logits.log_softmax(-1)
    coupled(log_gate, target, outputs).sum().backward()
    residual = (target - blend(log_gate, outputs)).detach()
    torch.testing.assert_close(outputs.grad, -2 * logits.detach().softmax(-1).unsqueeze(-1) * residual.unsqueeze(-2))


def test_the_classes_form_is_the_cross_entropy_of_the_blended_distribution(drawn):
    logits, outputs, _ = drawn
    log_gate, log_outputs = logits.log_softmax(-1), outputs.log_softmax(-1)
    wanted = torch.arange(B) % K
    fit = log_outputs.gather(-1, wanted.view(-1, 1, 1).expand(-1, E, 1)).squeeze(-1)
    mixture = (log_gate.exp().unsqueeze(-1) * log_outputs.exp()).sum(1)
    torch.testing.assert_close(log_blend(log_gate, log_outputs), mixture.log())
    torch.testing.assert_close(likelihood(log_gate, fit), -mixture.log()[torch.arange(B), wanted])


def test_far_targets_do_not_underflow():
    """exp(-½ 10,000) is 0 in float32; its logarithm is not."""
    log_gate = torch.zeros(1, 2).log_softmax(-1)
    fit = torch.tensor([[-5000.0, -5001.0]], requires_grad=True)
    error = likelihood(log_gate, fit)
    assert error.item() == pytest.approx(5000 + math.log(2) - math.log1p(math.exp(-1)))
    error.backward()
    assert fit.grad.tolist()[0] == pytest.approx([-1 / (1 + math.exp(-1)), -1 / (1 + math.exp(1))], rel=1e-3)
