"""Expert choice: experts choose their tokens, in a group or across the batch."""

import pytest
import torch

from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.plans import PerExpert, Ragged

E = 4  # the sizes of the conformance suite


def test_expert_choice_takes_the_best_in_each_group(make_router, data):
    router = make_router("expert_choice", capacity_factor=1.5)
    x, _ = data(3, 5)
    plan = router(RouterInput(x)).plan
    assert isinstance(plan, PerExpert)
    assert plan.position.shape == (3, E, 2)  # ceil(1.5 * 5 / 4)
    probs = (x @ router.weight.t()).softmax(-1)
    for group in range(3):
        for expert in range(E):
            best = probs[group, :, expert].topk(2)
            assert torch.equal(plan.position[group, expert], best.indices)
            assert torch.allclose(plan.weight[group, expert], best.values)


def test_expert_choice_across_the_batch(make_router, data):
    """At each position, each expert takes its best groups; flat token = group * S + position."""
    router = make_router("expert_choice_batch", capacity_factor=1.5)
    x, _ = data(5, 3)
    plan = router(RouterInput(x)).plan
    assert isinstance(plan, Ragged)
    probs = (x @ router.weight.t()).softmax(-1)
    expected = {
        (group * 3 + position, expert)
        for position in range(3)
        for expert in range(E)
        for group in probs[:, position, expert].topk(2).indices.tolist()
    }
    assert set(zip(plan.token.tolist(), plan.expert.tolist(), strict=True)) == expected
    assert torch.allclose(plan.weight, probs.flatten(0, 1)[plan.token, plan.expert])


def test_expert_choice_has_no_losses_and_is_balanced(make_layer, data):
    x, _ = data(4, 8)
    for case in ("expert_choice", "expert_choice_batch"):
        layer = make_layer(case)
        _, routing = layer(x)
        assert not routing.losses
        assert routing.work.kept == 4 * 8 * 2


@pytest.mark.parametrize("factor", [0.0, float("inf"), float("nan")])
def test_a_capacity_factor_that_says_no_number_of_tokens_is_refused(factor):
    with pytest.raises(ValueError, match=f"capacity_factor is {factor}; it must be above 0 and finite"):
        build_router("expert_choice", d_model=2, num_experts=3, capacity_factor=factor)
