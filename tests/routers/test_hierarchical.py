"""Two levels: the best expert of the best group is not always the best expert, and the weight is the product of gates."""

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.hierarchical import choose_in_groups, nearest_divisor

GROUP = torch.tensor([[0.6, 0.3, 0.1]])
WITHIN = torch.tensor([[[0.5, 0.3, 0.2], [0.05, 0.9, 0.05], [0.2, 0.2, 0.6]]])


@pytest.mark.parametrize(
    ("top_groups", "top_k", "expert", "weight"),
    [
        (1, 1, [0], [0.6 * 0.5]),
        (2, 1, [0, 4], [2 / 3 * 0.5, 1 / 3 * 0.9]),
        (1, 2, [0, 1], [0.6 * 5 / 8, 0.6 * 3 / 8]),
    ],
)
def test_products_of_gates_by_hand(top_groups, top_k, expert, weight):
    found, gate = choose_in_groups(GROUP, WITHIN, top_groups, top_k)
    assert found.tolist() == [expert]
    assert gate[0].tolist() == pytest.approx(weight)


def test_two_by_two_sum_to_one():
    """Groups 0 and 1 by 2 : 1; experts 0 and 1 of three by 5 : 3, and in group 1 the middle one by 0.9 : 0.05."""
    found, gate = choose_in_groups(GROUP, WITHIN, 2, 2)
    assert found[0, :3].tolist() == [0, 4, 1]
    assert int(found[0, 3]) in (3, 5)
    assert gate[0].tolist() == pytest.approx([2 / 3 * 5 / 8, 1 / 3 * 18 / 19, 2 / 3 * 3 / 8, 1 / 3 / 19])


def test_router_chooses_within_the_group(data):
    """Against loops over the parameters: the groups' softmax, then that of the six experts' rows two by two."""
    router = build_router("hierarchical", d_model=8, num_experts=6, expert_groups=3, top_k=1)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.mul_(50)
    x, _ = data(2, 10)
    with torch.no_grad():
        routing = router(RouterInput(x))
    not_the_best = 0
    for token, row in enumerate(x.flatten(0, 1)):
        group = (router.group_weight @ row).softmax(0)
        best = int(group.argmax())
        inside = (router.weight[2 * best : 2 * best + 2] @ row).softmax(0)
        assert int(routing.plan.expert[token]) == 2 * best + int(inside.argmax())
        assert routing.plan.weight[token].item() == pytest.approx((group[best] * inside.max()).item(), rel=1e-4)
        not_the_best += int(routing.plan.expert[token]) != int((router.weight @ row).argmax())
    assert not_the_best
    assert torch.allclose(routing.probs.sum(1), torch.ones(20))
    assert torch.allclose(routing.logits.softmax(-1), routing.probs)


def test_both_levels_learn_at_one_choice_each(make_router, data):
    router = make_router("hierarchical_1")
    x, _ = data(3, 8)
    router(RouterInput(x)).plan.weight.sum().backward()
    assert router.group_weight.grad.abs().amax(1).min() > 1e-6
    assert router.weight.grad.abs().amax(1).min() > 1e-6


def test_sizes_by_default():
    assert [nearest_divisor(n) for n in (1, 2, 4, 7, 8, 12, 16, 64)] == [1, 1, 2, 1, 2, 3, 4, 8]
    assert [nearest_divisor(n, 2) for n in (1, 2, 3, 6)] == [1, 2, 3, 2]
    router = build_router("hierarchical", d_model=8, num_experts=16)
    assert (router.expert_groups, router.group_size, router.top_groups, router.top_k) == (4, 4, 1, 2)
    assert router.nominal_rows(2, 3) == 12
    assert build_router("hierarchical", d_model=8, num_experts=4, expert_groups=4).top_k == 1


def test_cost_is_that_of_two_products():
    """(T, D) x (D, A) and (T, D) x (D, E), three products each, and the product of the balance loss."""
    router = build_router("hierarchical", d_model=8, num_experts=4)
    assert router.cost(2, 6).training == 3 * 2 * 12 * 8 * (4 + 2) + 2 * (2 * 12 * 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_groups": 4}, "expert_groups is 4; it must divide the 6 experts: one of 1, 2, 3, 6"),
        ({"top_groups": 3}, r"top_groups is 3; it must be 1 or 2, and at most the number of groups \(3\)"),
        (
            {"expert_groups": 6, "top_k": 2},
            r"top_k is 2; it must be 1 or 2, and at most the number of experts of a group \(1\)",
        ),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        build_router("hierarchical", d_model=2, num_experts=6, **options)
