"""Everything that routelab asks of any router, and what only this one promises."""

import pytest
import torch

from routelab import RouterInput, build_router
from routelab.conformance import RouterConformance


class TestRules(RouterConformance):
    router = "conscience"


class TestRulesOfPlainKMeans(RouterConformance):
    router = "conscience"
    options = {"strength": 0.0, "rate": 1.0}


def two_centroids(**options):
    """Centroids east and north, in a plane."""
    router = build_router("conscience", d_model=2, num_experts=2, **options)
    router.centroid.copy_(torch.eye(2))
    return router


def test_the_nearest_centroid_wins_whatever_the_length():
    plan = two_centroids()(RouterInput(torch.tensor([[[9.0, 1.0], [0.1, 0.2], [-1.0, -2.0]]]))).plan
    assert plan.expert.squeeze(1).tolist() == [0, 1, 0]
    assert plan.weight.tolist() == [[1.0]] * 3


def test_a_centroid_turns_towards_the_mean_direction_of_what_it_won():
    router = two_centroids(rate=0.5, strength=0.01)
    router(RouterInput(torch.tensor([[[4.0, 3.0], [0.8, -0.6]]])))
    router.update()
    # Directions (0.8, 0.6) and (0.8, -0.6): their mean points east, where the centroid is.
    assert router.centroid.tolist() == [pytest.approx([1.0, 0.0]), pytest.approx([0.0, 1.0])]
    router(RouterInput(torch.tensor([[[4.0, 3.0]]])))
    router.update()
    # Half way from (1, 0) to (0.8, 0.6) is (0.9, 0.3), brought to length 1; the other won nothing.
    assert router.centroid.tolist() == [pytest.approx([0.948683, 0.316228], abs=1e-6), pytest.approx([0.0, 1.0])]
    # From 1/2, twice half of the way to 1.
    assert router.share.tolist() == pytest.approx([0.875, 0.125])


def test_an_expert_that_wins_too_often_is_held_back():
    token = RouterInput(torch.tensor([[[0.8, 0.6]]]))
    router = two_centroids(strength=0.3)
    router.share.copy_(torch.tensor([0.75, 0.25]))
    # 0.8 - 0.3 * 0.5 = 0.65 against 0.6 + 0.15 = 0.75.
    assert router(token).plan.expert.item() == 1
    router.strength = 0.0
    assert router(token).plan.expert.item() == 0


def test_padding_and_evaluation_teach_nothing():
    router = two_centroids()
    router(RouterInput(torch.tensor([[[4.0, 3.0], [1.0, 0.0]]]), mask=torch.tensor([[True, False]])))
    assert router.count.tolist() == [1.0, 0.0]
    router.eval()(RouterInput(torch.tensor([[[4.0, 3.0]]])))
    assert router.count.tolist() == [1.0, 0.0]


def test_without_a_token_nothing_moves():
    router = two_centroids()
    router.update()
    assert router.centroid.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert router.share.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("option", "value"), [("strength", -1.0), ("rate", 0.0), ("rate", 2.0)])
def test_a_wrong_option_is_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        build_router("conscience", d_model=2, num_experts=2, **{option: value})
