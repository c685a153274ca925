"""Matching: every arm within the tolerance of the reference, or a sentence that names the nearest size."""

import pytest
import torch

from routelab.baselines.build import make_arm
from routelab.comparison.matching import MEASURES, match_arms
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.config.schema import Config
from routelab.core.errors import UsageError
from routelab.data.base import load


def matched(words):
    config = resolve(words).config
    return match_arms(arm_choices(config, config.arms), load("digits").task, config.match)


@pytest.mark.parametrize(
    "words", [[], ["experts.kind=swiglu", "experts.count=4"], ["backbone.moe_every=2", "backbone.patch_size=2"]]
)
def test_every_arm_costs_the_same(words):
    found = matched(words)
    assert len(found) == len(Config().arms)
    for arm in found:
        assert arm.ratio == pytest.approx(1.0, abs=0.02), arm.choice.label


@pytest.mark.parametrize(
    ("on", "measure"),
    [
        ("total_params", lambda arm: arm.total_params),
        ("active_params", lambda arm: arm.active_params),
        ("train_flops", lambda arm: arm.train_flops_per_example()),
    ],
)
def test_what_match_on_names_is_what_becomes_equal(on, measure):
    data = load("digits")
    config = resolve([f"match.on={on}", "backbone.hidden=512", "arms=[dense,switch,top2,hash,soft]"]).config
    found = match_arms(arm_choices(config, config.arms), data.task, config.match)
    sizes = [measure(make_arm(arm.choice.spec, data.task, 0, sizing=True)) for arm in found]
    assert [arm.ratio for arm in found] == pytest.approx([size / sizes[0] for size in sizes])
    assert sizes == pytest.approx([sizes[0]] * 5, rel=0.02)
    others = [other for other in MEASURES if other != on]
    assert any(abs(MEASURES[name][1](make_arm(found[1].choice.spec, data.task, 0, sizing=True)) /
        MEASURES[name][1](make_arm(found[0].choice.spec, data.task, 0, sizing=True)) - 1) > 0.05 for name in others)  # fmt: skip


def test_too_many_experts_for_the_parameters_is_an_error_with_the_nearest():
    with pytest.raises(
        UsageError, match=r"'switch' cannot be matched .* experts.hidden=1, has 1\.\d+ of the reference's parameters"
    ):
        matched(["arms=[dense,switch]", "match.on=total_params", "experts.count=64", "backbone.hidden=8"])


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


@pytest.mark.parametrize("arm", ["dense", "topk", "soft", "expert_choice"])
def test_nominal_training_flops_are_those_of_a_dropless_step(arm):
    data = load("digits")
    config = resolve([f"arms=[{arm}]"]).config
    built = make_arm(arm_choices(config, config.arms)[0].spec, data.task, 0)
    index = torch.arange(16)
    spent = float(built.loss(data.train.select(index), index).flops.model) / 16
    assert spent == pytest.approx(built.train_flops_per_example())


def test_the_reference_is_the_arm_of_that_label_whichever_of_its_name_comes_first():
    found = matched(["arms=[{name: dense, label: narrow, backbone.hidden: 64},switch,dense]", "match.tolerance=0.7"])
    assert [arm.choice.label for arm in found if arm.ratio == 1.0] == ["dense"]
    assert found[2].choice.spec.get("backbone.hidden") is None, "the reference keeps its own width"
    assert found[1].ratio == pytest.approx(1.0, abs=0.1)
    assert found[0].ratio < 0.6
