"""Auxiliary losses: a wrong scale or padding that counts silently changes what every router learns."""

import math

import pytest
import torch

from routers.losses import balance_loss, cv_squared, jitter, z_loss

GATES = torch.tensor([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 0.0]])


def test_balance_golden():
    """First choices 0, 2, 2, 0: f = (.5, 0, .5), P = (.425, .275, .3), 3 * (.2125 + .15) = 1.0875."""
    first = GATES.argmax(1)
    assert balance_loss(GATES, first).item() == pytest.approx(1.0875)
    assert balance_loss(GATES, first.unsqueeze(1)).item() == pytest.approx(1.0875)


def test_balance_counts_all_choices():
    """Two choices: {0,1}, {2,0}, {2,1}, {0,1} give f = (3, 3, 2) / 8."""
    expert = torch.tensor([[0, 1], [2, 0], [2, 1], [0, 1]])
    expected = 3 * (3 * 0.425 + 3 * 0.275 + 2 * 0.3) / 8
    assert balance_loss(GATES, expert).item() == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("experts", [2, 4, 8])
def test_perfect_balance_is_one(k, experts):
    """Libraries that report k instead of 1 make loss weights incomparable between k=1 and k=2."""
    tokens = 2 * experts
    expert = (torch.arange(tokens).unsqueeze(1) + torch.arange(k)) % experts
    probs = torch.full((tokens, experts), 1 / experts)
    assert balance_loss(probs, expert).item() == pytest.approx(1.0)


def test_collapse_is_the_number_of_experts():
    probs = torch.zeros(6, 4)
    probs[:, 2] = 1
    assert balance_loss(probs, probs.argmax(1)).item() == pytest.approx(4.0)


@pytest.mark.parametrize("k", [1, 2])
def test_balance_masked_equals_real_alone(k):
    torch.manual_seed(0)
    probs, mask = torch.randn(20, 5).softmax(-1), torch.rand(20) < 0.6
    expert = probs.topk(k, dim=-1).indices
    assert balance_loss(probs, expert, mask).item() == pytest.approx(balance_loss(probs[mask], expert[mask]).item(), rel=1e-6)
    assert balance_loss(probs, expert, mask).item() != pytest.approx(balance_loss(probs, expert).item(), rel=1e-4)


def test_balance_gradient():
    """Only P carries a gradient: E * f_e / T for every token; padding gets none."""
    probs = GATES.clone().requires_grad_()
    balance_loss(probs, GATES.argmax(1), torch.tensor([True, True, True, False])).backward()
    expected = 3 * torch.tensor([1 / 3, 0, 2 / 3]) / 3
    assert torch.allclose(probs.grad[:3], expected.expand(3, 3))
    assert probs.grad[3].abs().max() == 0


def test_all_masked_is_zero():
    nobody = torch.zeros(4, dtype=torch.bool)
    assert balance_loss(GATES, GATES.argmax(1), nobody).item() == 0
    assert z_loss(GATES, nobody).item() == 0


def test_z_loss_value():
    """logsumexp of (0, 0, 0, 0) is ln 4."""
    assert z_loss(torch.zeros(3, 4)).item() == pytest.approx(math.log(4) ** 2)


def test_z_loss_masked_equals_real_alone():
    torch.manual_seed(0)
    logits, mask = 3 * torch.randn(20, 5), torch.rand(20) < 0.6
    zeroed = logits.masked_fill(~mask.unsqueeze(1), 0.0)
    assert z_loss(zeroed, mask).item() == pytest.approx(z_loss(logits[mask]).item(), rel=1e-6)
    assert z_loss(zeroed).item() != pytest.approx(z_loss(logits[mask]).item(), rel=1e-3)


def test_cv_squared_golden():
    """Population variance; the sample variance would give .0581."""
    assert cv_squared(GATES.sum(0)).item() == pytest.approx(0.03875, rel=1e-4)
    assert cv_squared(torch.full((4,), 3.0)).item() == 0


def test_jitter_range():
    torch.manual_seed(0)
    ratio = jitter(torch.full((10_000,), -2.0), 0.1) / -2
    assert 0.9 <= ratio.min() < 0.91
    assert 1.09 < ratio.max() <= 1.1
