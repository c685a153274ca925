"""Capacity decides which tokens are dropped, so a wrong order or a wrong size changes every published comparison."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routelab.routers.capacity import PRIORITIES, capacity, capacity_tensor, limit, rank_in_bucket
from routelab.routers.expert_choice import take
from routelab.routers.plans import Blend, PerExpert, Ragged, Slots, TopK

GATES = torch.tensor([[0.4, 0.0, 0.2], [0.5, 0.1, 0.4], [0.3, 0.2, 0.6]])


def top2_plan(gates):
    weight, expert = gates.topk(2, dim=-1)
    return TopK(expert, weight, gates.shape[1])


def as_ragged(plan, order):
    """The same assignments as a flat list, in another storage order."""
    tokens, k = plan.expert.shape
    token = torch.arange(tokens).repeat_interleave(k)
    return Ragged(token[order], plan.expert.reshape(-1)[order], plan.weight.reshape(-1)[order], plan.num_experts)


def random_plan(seed, tokens=12, experts=4, k=2):
    gates = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    weight, expert = gates.topk(k, dim=-1)
    return TopK(expert, weight, experts)


@pytest.mark.parametrize(
    ("factor", "k", "tokens", "experts", "expected"),
    [
        (1.25, 2, 100, 8, 32),  # 31 without the ceiling, 16 without k
        (1.25, 1, 100, 8, 16),
        (1.1, 1, 10, 1, 11),  # 1.1 * 10 is 11.000000000000002 in binary
        (1.0, 1, 1, 8, 1),
        (2.0, 1, 0, 8, 0),
    ],
)
def test_capacity_value(factor, k, tokens, experts, expected):
    assert capacity(factor, k, tokens, experts) == expected
    assert capacity_tensor(factor, k, torch.tensor([tokens]), experts).tolist() == [expected]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0.5, 1.0, 1.1, 1.25, 1.3, 2.0]), st.integers(1, 4), st.integers(1, 3000), st.integers(1, 64))
def test_capacity_tensor_agrees(factor, k, tokens, experts):
    """A masked batch takes the tensor form; the same number of tokens must have the same room."""
    assert int(capacity_tensor(factor, k, torch.tensor([tokens]), experts)[0]) == capacity(factor, k, tokens, experts)
    assert capacity(factor, k, tokens, experts) >= math.floor(factor * k * tokens / experts)


@pytest.mark.parametrize(
    ("priority", "keep"),
    [
        ("choice", [[1, 1], [1, 0], [1, 0]]),
        ("probability", [[1, 0], [1, 1], [1, 0]]),
        ("position", [[1, 1], [1, 1], [0, 0]]),
    ],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_golden_assignment(priority, keep, ragged):
    """The worked example of the routing reference: three tokens, k=2, C=2."""
    plan, expected = top2_plan(GATES), torch.tensor(keep).bool()
    if ragged:
        order = torch.tensor([5, 0, 3, 2, 4, 1])
        plan, expected = as_ragged(plan, order), expected.reshape(-1)[order]
    # A Ragged plan needs the tokens' scores: without them each assignment ranks by its own weight.
    assert torch.equal(limit(plan, 2, priority, score=GATES.amax(1)).keep, expected)
    if not ragged:
        assert torch.equal(limit(plan, 2, priority).keep, expected)


@pytest.mark.parametrize(
    ("priority", "slot"),
    [("choice", [[0, 1], [1, 2], [0, 2]]), ("probability", [[1, 2], [0, 1], [0, 2]])],
)
def test_golden_places(priority, slot):
    """The same example's places: an assignment survives any capacity above its place among those of its expert."""
    for room in range(4):
        assert torch.equal(limit(top2_plan(GATES), room, priority).keep, torch.tensor(slot) < room)


def test_score_overrides_weight():
    plan = top2_plan(GATES)
    keep = limit(plan, 2, "probability", score=torch.tensor([3.0, 2.0, 1.0])).keep
    assert torch.equal(keep, limit(plan, 2, "choice").keep)
    assert not torch.equal(keep, limit(plan, 2, "probability").keep)


def test_expert_choice_golden_picks():
    plan = take(GATES.unsqueeze(0), 2.0)
    assert plan.position.tolist() == [[[1, 0], [2, 1], [2, 1]]]
    assert torch.allclose(plan.weight, torch.tensor([[[0.5, 0.4], [0.2, 0.1], [0.6, 0.4]]]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30))
def test_rank_in_bucket(buckets):
    expected = [buckets[:i].count(value) for i, value in enumerate(buckets)]
    assert rank_in_bucket(torch.tensor(buckets, dtype=torch.int64)).tolist() == expected


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(PRIORITIES), st.sampled_from([1, 2, 3]), st.integers(0, 7), st.booleans())
def test_fills_exactly(seed, priority, groups, room, masked):
    """No expert gets more than its room, and nobody is dropped while there is room: kept = min(asked, room)."""
    plan = random_plan(seed)
    alive = torch.rand(12, generator=torch.Generator().manual_seed(seed + 1)) < 0.7 if masked else torch.ones(12).bool()
    if masked:
        plan = TopK(plan.expert, plan.weight, 4, alive.unsqueeze(1).expand(12, 2))
    kept = limit(plan, room, priority, groups=groups).keep
    for expert_k, keep_k, alive_k in zip(
        plan.expert.chunk(groups), kept.chunk(groups), alive.unsqueeze(1).expand(12, 2).chunk(groups), strict=True
    ):
        asked = torch.bincount(expert_k[alive_k], minlength=4)
        assert torch.equal(torch.bincount(expert_k[keep_k], minlength=4), asked.clamp_max(room))
        assert not (keep_k & ~alive_k).any()


def test_room_differs_by_group():
    expert = torch.zeros(6, 1, dtype=torch.int64)
    keep = limit(TopK(expert, torch.ones(6, 1), 2), torch.tensor([1, 2]), groups=2).keep
    assert keep.flatten().tolist() == [True, False, False, True, True, False]


def test_dropped_take_no_room():
    """Padding in front must not use up the places of the real tokens behind it."""
    expert, keep = torch.zeros(4, 1, dtype=torch.int64), torch.tensor([0, 0, 1, 1]).bool().unsqueeze(1)
    got = limit(TopK(expert, torch.ones(4, 1), 2, keep), 2).keep
    assert torch.equal(got, keep)


def test_groups_equal_limiting_each_alone():
    plan = random_plan(3)
    for priority in ("position", "choice", "probability"):
        together = limit(plan, 2, priority, groups=3).keep
        alone = [
            limit(TopK(e, w, 4), 2, priority).keep for e, w in zip(plan.expert.chunk(3), plan.weight.chunk(3), strict=True)
        ]
        assert torch.equal(together, torch.cat(alone))


def test_ragged_agrees_with_topk_in_groups():
    plan, order = random_plan(5), torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for priority in ("position", "choice"):
        flat = limit(as_ragged(plan, order), 2, priority, groups=3, tokens=12).keep
        assert torch.equal(flat, limit(plan, 2, priority, groups=3).keep.reshape(-1)[order])


def test_random_priority_is_random_and_seeded():
    plan = TopK(torch.zeros(20, 1, dtype=torch.int64), torch.ones(20, 1), 1)

    def draw(seed):
        torch.manual_seed(seed)
        return limit(plan, 10, "random").keep

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_plans_of_fixed_size_come_back_unchanged():
    for plan in (
        PerExpert(torch.zeros(1, 2, 3, dtype=torch.int64), torch.ones(1, 2, 3), 2),
        Slots(torch.ones(1, 3, 2, 1), torch.ones(1, 3, 2, 1), 2),
        Blend(torch.ones(3, 2), 2),
    ):
        assert limit(plan, 1) is plan


def test_errors():
    with pytest.raises(ValueError, match="priority is 'best'"):
        limit(top2_plan(GATES), 2, "best")
    with pytest.raises(ValueError, match="number of tokens"):
        limit(as_ragged(top2_plan(GATES), torch.arange(6)), 2, groups=3)
