"""Plans of tokens that choose sets: a GPU's layout of fixed size says and does what the compact one does."""

import math

import pytest
import torch

from routelab.core.initialisation import initialise
from routelab.experts.dispatch import asked, run
from routelab.experts.grouped_experts import ExpertBank
from routelab.routers.capacity import limit, ragged_capacity
from routelab.routers.plans import check_plan, check_values, rows_per_group, sets, share_TE
from routelab.routers.top_p import smallest_set

G, S, D, E = 3, 8, 8, 4


def both(most=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(G * S, E, generator=generator).relu()
    weight[0] = 0.0  # a token without any choice
    chosen = weight > 0
    if most is not None:
        best = weight.topk(most).indices
        chosen &= torch.zeros_like(chosen).scatter_(1, best, True)
    parts = [weight.clone().requires_grad_() for _ in range(2)]
    return parts, [sets(chosen, part, most=most, compact=compact) for part, compact in zip(parts, (True, False), strict=True)]


@pytest.mark.parametrize("most", [None, 2])
def test_sizes(most):
    _, (compact, fixed) = both(most)
    for plan in (compact, fixed):
        check_plan(plan, G, S)
        check_values(plan, G, S)
    assert compact.keep is None
    assert fixed.token.numel() == G * S * (most or E) > compact.token.numel()
    assert asked(fixed, G) == asked(compact, G) == compact.token.numel()
    assert rows_per_group(fixed, G) == rows_per_group(compact, G) == compact.token.numel() / G
    for kept in (False, True):
        assert torch.equal(share_TE(fixed, G, S, kept=kept), share_TE(compact, G, S, kept=kept))


@pytest.mark.parametrize("kernel", ["auto", "batched", "loop"])
@pytest.mark.parametrize("most", [None, 2])
def test_outputs_and_gradients_are_the_same(most, kernel):
    bank = ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=12)
    initialise(bank, 0)
    weights, plans = both(most)
    found = []
    for weight, plan in zip(weights, plans, strict=True):
        x = torch.randn(G, S, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
        out, _ = run(bank, x, plan, kernel)
        out.square().sum().backward()
        found.append((out, x.grad, weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("priority", ["position", "choice", "probability"])
@pytest.mark.parametrize("groups", [1, G])
def test_capacity_leaves_the_same(groups, priority):
    """What stands for no choice takes no room, and is not counted among the choices that make it."""
    _, (compact, fixed) = both()
    room = [ragged_capacity(0.5, plan, groups, G * S) for plan in (compact, fixed)]
    assert torch.equal(*room)
    shares = [
        share_TE(limit(plan, room[0], priority, groups=groups, tokens=G * S), G, S, kept=True) for plan in (compact, fixed)
    ]
    assert torch.equal(*shares)
    assert 0 < shares[0].sum() < asked(compact, G)


def test_a_dropped_choice_is_still_a_choice():
    _, (_, fixed) = both()
    limited = limit(fixed, 1, tokens=G * S)
    assert torch.equal(share_TE(limited, G, S), share_TE(fixed, G, S))
    assert share_TE(limited, G, S, kept=True).sum() == E


@pytest.mark.parametrize("p", [0.1, 0.25, 0.4, 0.7, 0.99, 1.0])
def test_top_p_never_needs_more_entries_than_it_lays_out(p):
    """ceil(p E) + 1, flat distributions with their rounding included."""
    for experts in (3, 7, 32, 256):
        logits = torch.randn(200, experts, generator=torch.Generator().manual_seed(0))
        logits[:50] = 0.0
        logits[50:100] *= 1e-6
        assert smallest_set(logits.softmax(-1), p).sum(1).max() <= math.ceil(p * experts) + 1
