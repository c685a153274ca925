"""Plans are the only thing routers and experts exchange, so a wrong one must be refused with a sentence that helps."""

import re
from dataclasses import replace

import pytest
import torch

from routelab.routers.plans import (
    Blend,
    PerExpert,
    Ragged,
    Slots,
    TopK,
    check_plan,
    check_values,
    rows_per_group,
    share_TE,
    token_expert,
)

G, S, E = 2, 3, 4
T = G * S


def plans():
    return {
        "topk": TopK(torch.arange(2 * T).view(T, 2) % E, torch.rand(T, 2), E),
        "per_expert": PerExpert(torch.arange(G * E * 2).view(G, E, 2) % S, torch.rand(G, E, 2), E),
        "ragged": Ragged(torch.tensor([0, 0, 5]), torch.tensor([1, 3, 0]), torch.rand(3), E),
        "slots": Slots(torch.rand(G, S, E, 2), torch.rand(G, S, E, 2), E),
        "blend": Blend(torch.rand(T, E), E),
    }


@pytest.mark.parametrize("name", plans())
def test_good_plans_pass(name):
    check_plan(plans()[name], G, S)
    check_values(plans()[name], G, S)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("topk", {"expert": torch.zeros(T + 1, 2, dtype=torch.int64)}, "TopK.expert has shape (7, 2)"),
        ("topk", {"weight": torch.zeros(T, 3)}, "fellow fields"),
        ("topk", {"expert": torch.zeros(T, 2, dtype=torch.int32)}, "must be int64"),
        ("topk", {"weight": torch.zeros(T, 2, dtype=torch.int64)}, "must be floating point"),
        ("topk", {"weight": [1.0]}, "must be a tensor; got list"),
        ("topk", {"weight_on": "both"}, "weight_on is 'both'"),
        ("per_expert", {"position": torch.zeros(G, E + 1, 2, dtype=torch.int64)}, "PerExpert.position has shape"),
        ("ragged", {"expert": torch.zeros(2, dtype=torch.int64)}, "fellow fields"),
        ("slots", {"combine": torch.rand(G, S, E, 1)}, "fellow fields"),
        ("slots", {"weight_on": "input"}, "already weighs its inputs"),
        ("blend", {"weight": torch.rand(T, E - 1)}, "Blend.weight has shape"),
        # Each of these would broadcast, or count as True, and drop other rows than were meant.
        ("topk", {"keep": torch.ones(T, 1, dtype=torch.bool)}, "TopK.keep has shape (6, 1); it must be (6, 2)"),
        ("topk", {"keep": torch.ones(T, 2)}, "TopK.keep must be a tensor of torch.bool, or None; got torch.float32"),
        ("ragged", {"keep": [True, True, False]}, "Ragged.keep must be a tensor of torch.bool, or None; got list"),
        ("per_expert", {"keep": torch.ones(E, 2, dtype=torch.bool)}, "PerExpert.keep has shape (4, 2); it must be (2, 4, 2)"),
        ("blend", {"keep": torch.ones(E, dtype=torch.bool)}, "Blend.keep has shape (4,); it must be (6, 4)"),
        ("slots", {"keep": torch.ones(S, E, 2, dtype=torch.bool)}, "Slots.keep has shape (3, 4, 2); it must be (2, 4, 2)"),
    ],
)
def test_bad_plans_are_refused(name, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_plan(replace(plans()[name], **change), G, S)


@pytest.mark.parametrize("shape", [(E, 2), (E, 1), (1, E, 2), (G, E, 2)])
def test_slots_are_switched_off_for_all_groups_or_for_each(shape):
    check_plan(replace(plans()["slots"], keep=torch.ones(shape, dtype=torch.bool)), G, S)


def test_not_a_plan():
    with pytest.raises(ValueError, match="got dict"):
        check_plan({}, G, S)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("topk", {"expert": torch.full((T, 2), E)}, "TopK.expert holds 4; it must be 0 to 3"),
        ("topk", {"expert": torch.full((T, 2), -1)}, "TopK.expert holds -1"),
        ("per_expert", {"position": torch.full((G, E, 2), S)}, "PerExpert.position holds 3; it must be 0 to 2"),
        ("ragged", {"token": torch.tensor([0, 1, T])}, "Ragged.token holds 6"),
        ("blend", {"weight": torch.full((T, E), torch.nan)}, "not finite"),
        ("slots", {"combine": torch.full((G, S, E, 2), torch.inf)}, "Slots.combine holds a value that is not finite"),
    ],
)
def test_bad_values_are_refused(name, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_values(replace(plans()[name], **change), G, S)


def test_token_expert_numbers():
    """Group 1 starts at flat token S: the mistake would send one image's patches to another's output."""
    token, expert = token_expert(PerExpert(torch.tensor([[[0], [2]], [[1], [0]]]), torch.ones(2, 2, 1), 2), 3)
    assert token.tolist() == [0, 2, 4, 3]
    assert expert.tolist() == [0, 1, 0, 1]
    token, expert = token_expert(TopK(torch.tensor([[3, 1], [0, 2]]), torch.ones(2, 2), 4), 2)
    assert token.tolist() == [0, 0, 1, 1]
    assert expert.tolist() == [3, 1, 0, 2]


def test_rows_per_group():
    rows = {name: rows_per_group(plan, G) for name, plan in plans().items()}
    assert rows == {"topk": 6, "per_expert": 8, "ragged": 1.5, "slots": 8, "blend": 12}


def test_share_counts_assignments_and_drops():
    keep = torch.tensor([[True, False], [True, True]])
    plan = TopK(torch.tensor([[0, 1], [2, 2]]), torch.rand(2, 2), 3, keep)
    assert share_TE(plan, 1, 2).tolist() == [[1, 1, 0], [0, 0, 2]]
    assert share_TE(plan, 1, 2, kept=True).tolist() == [[1, 0, 0], [0, 0, 2]]


def test_share_of_slots_and_blend():
    combine = torch.rand(G, S, E, 2)
    slots = Slots(combine, combine, E, torch.tensor([[True, False]] * E))
    assert torch.allclose(share_TE(slots, G, S), combine.sum(-1).view(T, E))
    assert torch.allclose(share_TE(slots, G, S, kept=True), combine[..., 0].reshape(T, E))
    weight, keep = torch.rand(T, E), torch.rand(T, E) < 0.5
    assert torch.equal(share_TE(Blend(weight, E, keep), G, S, kept=True), weight * keep)
