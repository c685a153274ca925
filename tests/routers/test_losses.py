"""Auxiliary losses: a wrong scale or padding that counts silently changes what every router learns."""

import math

import pytest
import torch

from routelab.routers.losses import (
    balance_loss,
    chance_of_choice,
    cv_squared,
    importance_loss,
    jitter,
    load_loss,
    sequence_balance_loss,
    token_mean,
    z_loss,
)
from routelab.routers.relu_routing import weighted_l1
from routelab.routers.top_p import balance_of_sets, mean_entropy

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


def test_token_mean_by_hand():
    value, mask = torch.tensor([[1.0, 2.0], [6.0, 50.0]]), torch.tensor([[True, True], [True, False]])
    assert token_mean(value, mask).item() == 3.0
    assert token_mean(value).item() == 14.75
    assert token_mean(value[:, :0]).item() == 0.0
    assert token_mean(value, torch.zeros_like(mask)).item() == 0.0


def test_evaluation_in_a_group_of_processes_has_the_losses_of_its_own_batch(monkeypatch):
    """Nothing is summed there, as the others may have no batch at all; so nothing may be multiplied by their number."""
    mask, expert = torch.tensor([True, True, False, True]), GATES.argmax(1)
    losses = {
        "balance": lambda: balance_loss(GATES, expert, mask),
        "balance of sequences": lambda: sequence_balance_loss(GATES.view(2, 2, 3), expert.view(2, 2, 1), mask.view(2, 2)),
        "balance of sets": lambda: balance_of_sets(GATES, GATES > 0.25, mask),
        "entropy": lambda: mean_entropy(GATES, mask),
        "importance": lambda: importance_loss(GATES[:, :1], expert.unsqueeze(1), 3, mask),
        "l1": lambda: weighted_l1(GATES, (GATES > 0.25).sum(0), mask.float(), 1),
        "z": lambda: z_loss(GATES, mask),
    }
    alone = {name: loss().item() for name, loss in losses.items()}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with torch.no_grad():
        assert {name: loss().item() for name, loss in losses.items()} == alone


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


def test_importance_golden():
    expert = torch.arange(3).expand(4, 3)
    assert importance_loss(GATES, expert, 3).item() == pytest.approx(0.03875, rel=1e-4)
    mask = torch.tensor([True, True, False, True])
    assert importance_loss(GATES, expert, 3, mask) == importance_loss(GATES[mask], expert[:3], 3)
    # Weights .5 and .4 land on experts 0 and 2 of 3: mean .3, variance (.04 + .09 + .01) / 3.
    pair = importance_loss(torch.tensor([[0.5, 0.4]]), torch.tensor([[0, 2]]), 3)
    assert pair.item() == pytest.approx(0.14 / 3 / 0.09)


def phi(value):
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        # Expert 1 leads: the others stand against its 3, itself against 1.5.
        (1, [phi(-1), phi(-0.5), phi(-3)]),
        # 1 and 0 lead: both stand against the third's 0, the third against 1.5. Expert 1's deviation is 1.
        (2, [phi(2), phi(1), phi(-1.5)]),
    ],
)
def test_chance_by_hand(k, expected):
    logits, noisy = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.5, 3.0, 0.0]])
    assert chance_of_choice(logits, noisy, torch.ones(1, 3), k)[0].tolist() == pytest.approx(expected, abs=1e-6)
    twice = chance_of_choice(2 * logits, 2 * noisy, torch.full((1, 3), 2.0), k)
    assert twice[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_chance_is_how_often_a_new_noise_would_be_chosen(k):
    """Each expert's noise drawn 40,000 times anew, the others' left as they are."""
    generator = torch.Generator().manual_seed(k)
    logits, noise, deviation = (torch.randn(1, 5, generator=generator) for _ in range(3))
    deviation = deviation.abs() + 0.3
    noisy = logits + noise * deviation
    chance = chance_of_choice(logits, noisy, deviation, k)[0]
    for expert in range(5):
        redrawn = noisy.repeat(40_000, 1)
        redrawn[:, expert] = logits[0, expert] + deviation[0, expert] * torch.randn(40_000, generator=generator)
        chosen = (redrawn.topk(k, dim=-1).indices == expert).any(1).double().mean().item()
        assert chance[expert].item() == pytest.approx(chosen, abs=0.01)


def test_load_is_the_variation_of_the_chances():
    torch.manual_seed(0)
    logits, noisy, deviation = torch.randn(20, 5), torch.randn(20, 5), torch.rand(20, 5) + 0.1
    mask = torch.rand(20) < 0.6
    expected = cv_squared(chance_of_choice(logits, noisy, deviation, 2)[mask].sum(0))
    assert load_loss(logits, noisy, deviation, 2, mask).item() == pytest.approx(expected.item(), rel=1e-5)
    nobody = torch.zeros(20, dtype=torch.bool)
    assert load_loss(logits, noisy, deviation, 2, nobody).item() == 0


def test_sequence_balance_is_the_mean_of_each_sequence():
    """Two sequences, each collapsed on an expert of its own: 3 within each, although the batch as a whole is even."""
    probs = torch.eye(3)[torch.tensor([[0, 0], [2, 2]])]
    first = probs.argmax(-1, keepdim=True)
    assert sequence_balance_loss(probs, first).item() == pytest.approx(3)
    golden = GATES.unsqueeze(0)
    assert sequence_balance_loss(golden, golden.argmax(-1, keepdim=True)).item() == pytest.approx(1.0875)


@pytest.mark.parametrize("k", [1, 2])
def test_sequence_balance_masked_equals_real_alone(k):
    torch.manual_seed(0)
    probs = torch.randn(3, 7, 5).softmax(-1)
    expert = probs.topk(k, dim=-1).indices
    lengths = (7, 3, 0)
    mask = torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    each = [balance_loss(probs[g, :n], expert[g, :n]) for g, n in enumerate(lengths) if n]
    assert sequence_balance_loss(probs, expert, mask).item() == pytest.approx(sum(each).item() / 2, rel=1e-6)
    assert sequence_balance_loss(probs, expert, torch.zeros_like(mask)).item() == 0
