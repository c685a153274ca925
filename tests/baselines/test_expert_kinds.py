"""Arms with other experts: kinds without a hidden width, low-rank ones, zero-compute ones, a latent space."""

import pytest
import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.comparison.matching import match_arms
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.data.task import Batch, InputSpec, Task

TASK = Task("toy", "classification", InputSpec("image", (1, 8, 8)), 10)
SHAPE = {"name": "vit", "d_model": 16, "depth": 2, "heads": 2, "patch_size": 2, "hidden": 32}


def arm(name="topk", sizing=False, router=None, **experts):
    return make_arm(ArmSpec(name, SHAPE, {"count": 4, **experts}, router or {}), TASK, 0, sizing=sizing)


def batch(size=8):
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(size, 1, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator))


def test_moe_plus_plus_has_the_papers_zero_compute_experts():
    """1 zero, 1 copy and max(E / 4 - 2, 1) constant ones; only the layers after the first have a residual."""
    for count, constants in ((4, 1), (16, 2), (32, 6)):
        made = arm("moe_plus_plus", sizing=True, count=count)
        for index, layer in enumerate(made.mixtures):
            assert layer.experts.num_experts == count
            assert layer.zero_compute.kinds == ("zero", "copy", *["constant"] * constants)
            assert layer.router.num_experts == count + 2 + constants
            assert layer.router.zero_compute == 2 + constants
            assert layer.router.follows == (index > 0)
    made = arm("moe_plus_plus", zero=0, copy=2, constant=0, router={"follows": False})
    assert [layer.zero_compute.kinds for layer in made.mixtures] == [("copy", "copy")] * 2
    assert not any(layer.router.follows for layer in made.mixtures)
    assert arm("moe_plus_plus", zero=0, copy=0, constant=0).mixtures[0].zero_compute is None


def test_the_ledger_falls_as_tokens_choose_zero_compute_experts():
    """By the rows not run, and by nothing else."""
    made, data = arm("moe_plus_plus", router={"capacity_factor": None}), batch()
    spent = {}
    v, w = torch.randn(2, 16, generator=torch.Generator().manual_seed(1)) * 10
    for favoured, four in (("real", [0, 1, 2, 3]), ("free", [4, 5, 6, 0])):
        for layer in made.mixtures:
            with torch.no_grad():
                layer.router.weight.zero_()
                if layer.router.follows:
                    layer.router.residual.zero_()
                # Of v x, -v x, w x and -w x two are above 0, whatever x.
                layer.router.weight[four] = torch.stack([v, -v, w, -w])
        loss = made.loss(data, torch.arange(8))
        spent[favoured] = float(loss.flops.model), sum(int(routing.work.kept) for routing in loss.routings)
        loss.total.backward()
    row = made.mixtures[0].experts.row_cost.training
    assert spent["real"][1] == 2 * 2 * 8 * 16
    assert 0 < spent["free"][1] < 2 * 8 * 16
    assert spent["real"][0] - spent["free"][0] == pytest.approx((spent["real"][1] - spent["free"][1]) * row)


@pytest.mark.parametrize("name", ["topk", "expert_choice", "soft", "switch", "deepseek"])
def test_any_router_takes_zero_compute_experts_and_a_latent_space(name):
    made = arm(name, copy=1, constant=2, kind="lora", router={"latent_dim": 4})
    loss = made.loss(batch(), torch.arange(8))
    loss.total.backward()
    assert made.mixtures[0].router.num_experts == 7
    assert made.mixtures[0].experts.d_model == 4
    assert torch.isfinite(loss.total)
    assert made.flops_per_example() < arm(name, kind="lora").flops_per_example()


def test_latent_is_a_quarter_by_default():
    assert [layer.experts.d_model for layer in arm("latent").mixtures] == [4, 4]
    assert arm("latent", router={"latent_dim": 8}).mixtures[0].experts.d_model == 8
    assert arm("latent", router={"latent_dim": None}).mixtures[0].latent is None
    assert arm("topk").mixtures[0].latent is None
    shared = arm("latent", shared=1).mixtures[0].shared
    assert shared.d_model == 16, "shared experts see all features"


def test_active_parameters():
    """A token meets 2 of 4 experts; what low-rank experts share it meets always, and of MoE++ the intended part."""
    for options, part in (({"kind": "linear"}, 0.5), ({"kind": "lora"}, 0.5)):
        made = arm(**options)
        own = sum(value.numel() for layer in made.mixtures for value in layer.experts.own_parameters().values())
        assert made.total_params - made.active_params == own * part
    made = arm("moe_plus_plus")
    own = sum(value.numel() for layer in made.mixtures for value in layer.experts.parameters())
    # 2 choices, of which 0.75 * 4 / (0.75 * 4 + 3) = half are of real experts: 1 of 4.
    assert made.total_params - made.active_params == pytest.approx(own * 0.75)


def test_a_dense_arm_of_these_kinds():
    assert set(dict(arm("dense", kind="linear").network.blocks[0].feed_forward.named_parameters())) == {"linear"}
    plain, low = arm("dense"), arm("dense", kind="lora")
    for (name, one), (_, other) in zip(plain.named_parameters(), low.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "linear", "hidden": 8}, "experts.hidden is 8; experts of kind 'linear' have no hidden width: leave it null"),
        ({"kind": "zero"}, "'zero' is a zero-compute expert, not a kind of feed-forward.*experts.zero=1"),
        ({"copy": -1}, "experts.copy is -1; it must be a whole number of at least 0"),
        ({"rank": 0}, "experts.rank is 0; it must be a whole number of at least 1"),
        ({"router": {"latent_dim": 0}}, "router.latent_dim is 0"),
        ({"router": {"latent_dim": 17}}, "latent_dim is 17; it must be at most the 16 features"),
        ({"name": "mixture_of_depths", "copy": 1}, "experts.copy is 1; whole blocks as experts know neither"),
        ({"name": "mixture_of_depths", "router": {"latent_dim": 4}}, "router.latent_dim is 4; whole blocks"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(options, message):
    with pytest.raises(UsageError, match=message):
        arm(**options)


def matched(arms, *settings):
    sizes = ["backbone.d_model=16", "backbone.depth=2", "backbone.heads=2", "backbone.patch_size=2", "experts.count=4"]
    config = resolve([*sizes, *settings, f"arms={arms}"]).config
    return match_arms(arm_choices(config, config.arms), TASK, config.match)


def test_matching_sizes_them():
    for found in matched("[dense, moe_plus_plus, latent, {name: topk, experts.kind: lora, experts.rank: 2, label: lora}]"):
        assert found.ratio == pytest.approx(1, abs=0.02), found.choice.label


def test_linear_experts_cannot_be_sized_but_others_to_them():
    linear = "{name: topk, experts.kind: linear, label: linear}"
    with pytest.raises(UsageError, match="arm 'linear' has feed-forwards of kind 'linear' without a hidden width, and has 0"):
        matched(f"[dense, {linear}]")
    for found in matched(f"[dense, {linear}]", "match.reference=linear"):
        assert found.ratio == pytest.approx(1, abs=0.02), found.choice.label
