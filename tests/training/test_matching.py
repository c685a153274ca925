"""Matching: every arm within the tolerance of the reference, or a sentence that names the nearest size."""

import pytest

from routelab.data.contract import load
from routelab.training.arms import arm_choices
from routelab.training.config import resolve
from routelab.training.matching import match_arms
from routers.errors import UsageError


def matched(words):
    config = resolve(words).config
    return match_arms(arm_choices(config, config.arms), load("digits").task, config.match)


@pytest.mark.parametrize(
    "words", [[], ["experts.kind=swiglu", "experts.count=4"], ["backbone.moe_every=2", "backbone.patch_size=2"]]
)
def test_every_arm_costs_the_same(words):
    found = matched(words)
    assert len(found) == 6
    for arm in found:
        assert arm.ratio == pytest.approx(1.0, abs=0.02), arm.choice.label


def test_a_size_that_is_fixed_and_off_is_an_error_with_the_nearest():
    with pytest.raises(UsageError, match=r"experts.hidden=64 .* the nearest size is 25\d"):
        matched(["arms=[dense,switch]", "experts.hidden=64"])
    found = matched(["arms=[dense,switch]", "experts.hidden=64", "match.on=none"])
    assert found[1].ratio < 0.9


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["backbone.heads=5"], "heads is 5; it must divide d_model"),
        (["backbone.patch_size=3"], "patch_size is 3; it must divide"),
        (["backbone.depth=-1"], "depth is -1"),
        (["arms=[dense,top2]", "experts.count=1"], "top2 chooses 2 experts"),
        (["arms=[dense,{name: topk, top_k: 9}]"], "top_k is 9; it must be between 1 and the number of experts"),
        (["backbone.moe_every=9"], "moe_every is 9"),
    ],
)
def test_impossible_combinations(words, part):
    with pytest.raises(UsageError, match=part):
        matched(words)
