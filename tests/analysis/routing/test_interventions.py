"""Changed plans do what they say, for every type of plan, through the layer that runs them."""

import pytest
import torch

from routelab.analysis.routing.interventions import even, only, random, swapped, without
from routelab.experts.dispatch import run
from routelab.experts.grouped_experts import ExpertBank
from routelab.routers.plans import Blend, PerExpert, Ragged, Slots, TopK, check_plan, check_values, share_TE

G, S, D, E = 3, 4, 6, 4


@pytest.fixture
def bank():
    torch.manual_seed(0)
    return ExpertBank("gelu", num_experts=E, d_model=D, d_hidden=8)


def plan_of(kind):
    draw = torch.Generator().manual_seed(1)
    order = torch.rand(G * S, E, generator=draw).argsort(1)
    weight = torch.rand(G * S, 2, generator=draw) + 0.1
    keep = torch.ones(G * S, 2, dtype=torch.bool)
    keep[0, 1] = False
    if kind == "topk":
        return TopK(order[:, :2], weight, E, keep)
    if kind == "ragged":
        return Ragged(torch.arange(G * S).repeat_interleave(2), order[:, :2].flatten(), weight.flatten(), E)
    if kind == "per_expert":
        position = torch.rand(G, E, S, generator=draw).argsort(2)[..., :2]
        return PerExpert(position, torch.rand(G, E, 2, generator=draw), E)
    if kind == "slots":
        dispatch, combine = torch.rand(2, G, S, E, 2, generator=draw)
        return Slots(dispatch.softmax(1), combine.flatten(2).softmax(2).view_as(combine), E)
    return Blend(torch.rand(G * S, E, generator=draw), E)


KINDS = ("topk", "ragged", "per_expert", "slots", "blend")
each_kind = pytest.mark.parametrize("kind", KINDS)


def output(bank, plan, x):
    check_plan(plan, G, S)
    check_values(plan, G, S)
    with torch.no_grad():
        return run(bank, x, plan, "loop")[0]


@each_kind
def test_what_experts_give_adds_up(kind, bank):
    """Without expert e the output lacks exactly what e alone adds: summed over experts, E - 1 times the whole."""
    plan, x = plan_of(kind), torch.randn(G, S, D)
    whole = output(bank, plan, x)
    parts = sum(output(bank, without(plan, expert), x) for expert in range(E))
    torch.testing.assert_close(parts, (E - 1) * whole, atol=1e-5, rtol=1e-4)
    everything_off = plan
    for expert in range(E):
        everything_off = without(everything_off, expert)
    assert output(bank, everything_off, x).abs().max() == 0


@each_kind
def test_one_alone_serves_every_token_with_its_whole_weight(kind, bank):
    plan, x = plan_of(kind), torch.randn(G, S, D)
    alone = only(plan, 2, G, S)
    weights = weight_of(plan)
    assert torch.equal(share_TE(alone, G, S, kept=True)[:, [0, 1, 3]], torch.zeros(G * S, 3))
    torch.testing.assert_close(weight_of(alone)[:, 2], weights.sum(1))
    if kind not in ("slots",):
        rows = x.flatten(0, 1)
        with torch.no_grad():
            made = bank.loop(rows, torch.tensor([0, 0, G * S, 0]))
        torch.testing.assert_close(output(bank, alone, x).flatten(0, 1), made * weights.sum(1, keepdim=True))


def weight_of(plan):
    """(T, E) of living weights, by brute force."""
    found = torch.zeros(G * S, E)
    if isinstance(plan, Slots):
        return plan.combine.sum(3).flatten(0, 1)
    if isinstance(plan, Blend):
        return plan.weight if plan.keep is None else plan.weight * plan.keep
    keep = torch.ones_like(plan.weight, dtype=torch.bool) if plan.keep is None else plan.keep
    if isinstance(plan, Ragged):
        for t, e, w, k in zip(plan.token, plan.expert, plan.weight, keep, strict=True):
            found[t, e] += w * k
    elif isinstance(plan, TopK):
        for t in range(G * S):
            for c in range(plan.expert.shape[1]):
                found[t, plan.expert[t, c]] += plan.weight[t, c] * keep[t, c]
    else:
        for g in range(G):
            for e in range(E):
                for c in range(plan.position.shape[2]):
                    found[g * S + plan.position[g, e, c], e] += plan.weight[g, e, c] * keep[g, e, c]
    return found


@each_kind
def test_random_keeps_the_weights_of_a_token(kind, bank):
    plan = plan_of(kind)
    drawn = random(plan, G, S, torch.Generator().manual_seed(0))
    output(bank, drawn, torch.randn(G, S, D))
    before, after = weight_of(plan), weight_of(drawn)
    assert not torch.equal(before, after)
    if kind == "per_expert":
        # There experts choose: each keeps its weights, in every group, at other positions.
        torch.testing.assert_close(after.view(G, S, E).sum(1), before.view(G, S, E).sum(1))
    else:
        torch.testing.assert_close(after.sort(1).values, before.sort(1).values)


def test_random_is_even():
    plan = TopK(torch.zeros(4000, 1, dtype=torch.int64), torch.ones(4000, 1), E)
    share = share_TE(random(plan, 1000, 4, torch.Generator().manual_seed(0)), 1000, 4).mean(0)
    assert (share - 1 / E).abs().max() < 0.03


@each_kind
def test_swapped_is_the_example_before(kind, bank):
    plan = plan_of(kind)
    moved = swapped(plan, G, S)
    output(bank, moved, torch.randn(G, S, D))
    torch.testing.assert_close(weight_of(moved).view(G, S, E), weight_of(plan).view(G, S, E).roll(1, 0))


@pytest.mark.parametrize("kind", ["topk", "ragged", "blend"])
def test_swapped_in_one_group_is_the_token_before(kind):
    plan = plan_of(kind)
    torch.testing.assert_close(weight_of(swapped(plan, 1, G * S)), weight_of(plan).roll(1, 0))


@each_kind
def test_even_weights(kind, bank):
    plan = plan_of(kind)
    level = even(plan)
    output(bank, level, torch.randn(G, S, D))
    before, after = weight_of(plan), weight_of(level)
    torch.testing.assert_close(after.sum(), before.sum())
    torch.testing.assert_close(after[after > 0], after.max().expand(int((after > 0).sum())))
    if kind in ("topk", "ragged"):
        assert torch.equal(after > 0, before > 0)
