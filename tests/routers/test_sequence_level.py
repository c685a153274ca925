"""Whole examples: one choice from the mean of the real tokens, and one vote each in the balance."""

import math

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.sequence_level import mean_of_real


def router_of(**options):
    """Logits are the features."""
    router = build_router("sequence", d_model=3, num_experts=3, **options)
    with torch.no_grad():
        router.weight.copy_(torch.eye(3))
    return router


# The means are (log 2, 0, 0), which gives probabilities 2, 1, 1 in 4, and (0, log 4, 0), which gives 1, 4, 1 in 6.
X = torch.tensor([
    [[2 * math.log(2), 1.0, 0.0], [0.0, -1.0, 0.0]],
    [[0.0, 0.0, 5.0], [0.0, 2 * math.log(4), -5.0]],
])  # fmt: skip


def test_one_choice_by_hand():
    routing = router_of()(RouterInput(X))
    assert routing.plan.expert.flatten().tolist() == [0, 0, 1, 1]
    assert torch.allclose(routing.plan.weight.flatten(), torch.tensor([1 / 2, 1 / 2, 2 / 3, 2 / 3]))
    assert routing.probs.shape == (4, 3)
    # 3 * (1/2 * (1/2 + 1/6) / 2 + 1/2 * (1/4 + 2/3) / 2): half of the examples each for the experts 0 and 1.
    assert routing.losses["balance"].item() == pytest.approx(3 * (0.5 * (1 / 2 + 1 / 6) / 2 + 0.5 * (1 / 4 + 2 / 3) / 2))


def test_two_choices_are_renormalised_unless_told():
    plan = router_of(top_k=2)(RouterInput(X)).plan
    assert torch.allclose(plan.weight[:, 0], torch.tensor([2 / 3, 2 / 3, 4 / 5, 4 / 5]))
    assert torch.allclose(plan.weight.sum(1), torch.ones(4))
    raw = router_of(top_k=2, renormalize=False)(RouterInput(X)).plan
    assert torch.allclose(raw.weight[0], torch.tensor([1 / 2, 1 / 4]))


def test_mean_leaves_padding_out():
    x = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [6.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_of_real(x, mask).tolist() == [[2.0], [0.0]]
    assert mean_of_real(x).flatten().tolist() == pytest.approx([104 / 3, 6.0])


def test_an_example_votes_once_whatever_its_length():
    """The loss of two examples is the same however much of them is padding, and an empty example has no vote."""
    padded = torch.cat([X, torch.full((2, 4, 3), 9.0)], 1)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, :2] = True
    plain = router_of()(RouterInput(X)).losses["balance"]
    assert torch.allclose(router_of()(RouterInput(padded, mask=mask)).losses["balance"], plain)
    mask[1] = False
    alone = router_of()(RouterInput(X[:1])).losses["balance"]
    assert torch.allclose(router_of()(RouterInput(padded, mask=mask)).losses["balance"], alone)


def test_the_product_is_with_one_row_per_example():
    """3 products of (2, D) x (D, E), and the product of the balance loss, forward and backward."""
    assert router_of().cost(2, 6).training == 3 * 2 * 2 * 3 * 3 + 2 * (2 * 2 * 3)


def test_a_layer_that_follows_takes_the_first_layers_choice():
    """Whatever it reads itself; the choice is one, and is balanced once."""
    first, second = (
        router_of(whole_model=True),
        build_router("sequence", d_model=3, num_experts=3, whole_model=True, follows=True),
    )
    routing = first(RouterInput(X))
    followed = second(RouterInput(torch.randn(2, 2, 3), before=routing.logits))
    assert torch.equal(followed.plan.expert, routing.plan.expert)
    assert torch.equal(followed.plan.weight, routing.plan.weight)
    assert followed.losses == {}
    assert not list(second.parameters())
    assert second.cost(2, 6).training == 0
    with pytest.raises(ValueError, match=r"got none from it; with whole_model=True both need equal groups and 3 experts"):
        second(RouterInput(X))
    with pytest.raises(ValueError, match=r"got logits of shape \(4, 2\)"):
        second(RouterInput(X, before=torch.zeros(4, 2)))


def test_what_follows_teaches_the_layer_that_chose():
    first, second = (
        router_of(whole_model=True),
        build_router("sequence", d_model=3, num_experts=3, whole_model=True, follows=True),
    )
    second(RouterInput(X, before=first(RouterInput(X)).logits)).plan.weight.sum().backward()
    assert first.weight.grad.abs().max() > 0


def test_without_whole_model_a_layer_chooses_for_itself():
    router = build_router("sequence", d_model=3, num_experts=3, follows=True)
    assert not router.follows
    assert router.weight.shape == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 4}, "top_k is 4; it must be between 1 and the number of experts"),
        ({"renormalize": True}, "top_k=1 gives every token the weight 1 and the router no gradient; set renormalize=False"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        build_router("sequence", d_model=2, num_experts=3, **options)
