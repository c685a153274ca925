"""Top-p: the smallest set that is sure enough."""

import math

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.losses import balance_loss
from routelab.routers.top_p import balance_of_sets, mean_entropy, smallest_set

PROBS = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.35, 0.45], [0.1, 0.1, 0.8]])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.4, [[1, 0, 0], [0, 0, 1], [0, 0, 1]]),
        (0.6, [[1, 1, 0], [0, 1, 1], [0, 0, 1]]),
        (0.85, [[1, 1, 1], [1, 1, 1], [1, 0, 1]]),
        (0.01, [[1, 0, 0], [0, 0, 1], [0, 0, 1]]),
        (1.0, [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
    ],
)
def test_smallest_set_by_hand(p, expected):
    assert smallest_set(PROBS, p).int().tolist() == expected


def test_exactly_p_is_enough():
    assert smallest_set(torch.tensor([[0.25, 0.5, 0.25]]), 0.5).tolist() == [[False, True, False]]


def brute_force(probs, p):
    """The size of the smallest subset of mass p, by trying all."""
    experts = len(probs)
    masses = [(bin(s).count("1"), sum(probs[e] for e in range(experts) if s >> e & 1)) for s in range(1, 2**experts)]
    return min(size for size, mass in masses if mass >= p)


def test_no_subset_is_smaller():
    probs = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).mul(1.5).softmax(-1)
    for p in (0.2, 0.4, 0.7, 0.95):
        chosen = smallest_set(probs, p)
        assert chosen.sum(1).tolist() == [brute_force(row, p) for row in probs.tolist()]
        assert ((probs * chosen).sum(1) >= p).all()


def by_hand(**options):
    router = build_router("top_p", d_model=3, num_experts=3, **options)
    with torch.no_grad():
        router.weight.copy_(torch.eye(3))
    return router


def test_weights_by_hand():
    x = PROBS.log().unsqueeze(0)
    plan = by_hand(p=0.6)(RouterInput(x)).plan
    assert list(zip(plan.token.tolist(), plan.expert.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]
    assert torch.allclose(plan.weight, torch.tensor([0.5, 0.3, 0.35, 0.45, 0.8]))
    plan = by_hand(p=0.6, renormalize=True)(RouterInput(x)).plan
    assert torch.allclose(plan.weight, torch.tensor([0.625, 0.375, 0.4375, 0.5625, 1.0]))


def test_entropy_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]).log()
    assert mean_entropy(logits[:1]).item() == pytest.approx(1.5 * math.log(2))
    assert mean_entropy(logits).item() == pytest.approx((1.5 * math.log(2) + math.log(3)) / 2)
    assert mean_entropy(logits, torch.tensor([False, True])).item() == pytest.approx(math.log(3))


def test_entropy_of_a_certain_router_has_a_finite_gradient():
    logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    mean_entropy(logits).backward()
    assert torch.isfinite(logits.grad).all()


def test_balance_by_hand():
    """p = 0.6: choices 1, 2, 2 of 5; mean probabilities 0.8/3, 0.75/3, 1.45/3; 3 * (0.8 + 2 * 0.75 + 2 * 1.45) / 15 = 1.04."""
    assert balance_of_sets(PROBS, smallest_set(PROBS, 0.6)).item() == pytest.approx(1.04)
    # One choice each: the loss that token choice has.
    single = smallest_set(PROBS, 0.01)
    mask = torch.tensor([True, False, True])
    assert balance_of_sets(PROBS, single, mask).item() == pytest.approx(balance_loss(PROBS, PROBS.argmax(1), mask).item())


def test_losses_reach_the_weight(make_router, data):
    for name in ("entropy", "balance"):
        router = make_router("top_p")
        losses = router(RouterInput(data(3, 8)[0])).losses
        assert set(losses) == set(router.loss_weights) == {"entropy", "balance"}
        losses[name].backward()
        assert router.weight.grad.abs().max() > 1e-6, name


def test_nominal_is_the_most_that_a_token_can_take(data):
    router = build_router("top_p", d_model=8, num_experts=8)
    assert router.nominal_rows(2, 3) == 2 * 3 * 4  # ceil(0.4 * 8)
    with torch.no_grad():
        router.weight.zero_()
    assert len(router(RouterInput(data(2, 3)[0])).plan.token) == 2 * 3 * 4
    assert build_router("top_p", d_model=8, num_experts=8, nominal_k=1.8).nominal_rows(2, 5) == 18


def test_wrong_options():
    for options, message in (
        ({"p": 0.0}, "p is 0.0; it must be above 0 and at most 1"),
        ({"p": 1.5}, "p is 1.5; it must be above 0"),
        ({"nominal_k": 9}, r"nominal_k is 9; it must be between 1 and the number of experts \(8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            build_router("top_p", d_model=8, num_experts=8, **options)
