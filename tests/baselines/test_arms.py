"""Arms share everything they can: same seed, same start, so that a difference in results is one of routing."""

import pytest
import torch

from routelab.baselines.base import ArmSpec, Penalty, StepLoss
from routelab.baselines.build import arm_names, make_arm
from routelab.baselines.moe_arm import causal_routers
from routelab.core.errors import UsageError
from routelab.data.task import Batch, InputSpec, Task
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.hash_layer import balanced_table
from routelab.routers.plans import Slots

ROUTED = (
    "switch", "top2", "topk", "expert_choice", "hash", "soft", "st_moe", "noisy_topk", "deepseek", "deepseek_moe",
)  # fmt: skip
BACKBONE = {"d_model": 16, "depth": 2, "heads": 2, "patch_size": 2}


def make_task(kind="classification", **more):
    return Task("toy", kind, InputSpec("image", (1, 8, 8)), 3, **more)


def arm_of(name, seed=0, task=None, sizing=False, **sections):
    sections = {"backbone": BACKBONE, "experts": {"count": 4, "hidden": 24} if name != "dense" else {}, **sections}
    return make_arm(ArmSpec(name, **sections), task or make_task(), seed, sizing=sizing)


def batch_of(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(size, 1, 8, 8, generator=generator), torch.randint(0, 3, (size,), generator=generator))


# --- same start ---


def test_one_expert_is_the_dense_arm():
    """A softmax router over one expert, no loss that moves it: outputs and gradients of the dense arm."""
    dense = arm_of("dense")
    routed = arm_of("topk", experts={"count": 1}, router={"top_k": 1})
    batch = batch_of()
    losses = [arm.loss(batch, torch.arange(6)) for arm in (dense, routed)]
    assert losses[0].task.item() == pytest.approx(losses[1].task.item(), abs=1e-6)
    for loss in losses:
        loss.task.backward()
    other = dict(routed.named_parameters())
    for name, parameter in dense.named_parameters():
        twin = other[name.replace(".feed_forward.", ".feed_forward.experts.")]
        torch.testing.assert_close(twin.reshape(parameter.shape), parameter)
        torch.testing.assert_close(twin.grad.reshape(parameter.shape), parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ROUTED)
def test_shared_parts_start_alike(name):
    dense, routed = dict(arm_of("dense").named_parameters()), dict(arm_of(name).named_parameters())
    common = [key for key in dense if key in routed]
    assert len(common) > 10
    for key in common:
        assert torch.equal(dense[key], routed[key]), key
    other = dict(arm_of(name, seed=1).named_parameters())
    assert not torch.equal(other["network.patch.weight"], routed["network.patch.weight"])
    assert not torch.equal(
        other["network.blocks.0.feed_forward.experts.up"], routed["network.blocks.0.feed_forward.experts.up"]
    )


def test_layers_start_differently():
    arm = arm_of("topk")
    first, second = (layer.experts.up for layer in arm.mixtures)
    assert not torch.equal(first, second)
    assert not torch.equal(arm.mixtures[0].router.weight, arm.mixtures[1].router.weight)


# --- loss ---


@pytest.mark.parametrize("name", ["dense", *ROUTED])
def test_every_parameter_learns(name):
    arm = arm_of(name)
    loss = arm.loss(batch_of(), torch.arange(6))
    loss.task.backward()
    for key, parameter in arm.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key
    assert loss.task.item() == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=0.8)


def test_penalties_are_summed_over_layers():
    arm = arm_of("topk")
    loss = arm.loss(batch_of(), torch.arange(6))
    raw = sum(routing.losses["balance"] for routing in loss.routings)
    assert len(loss.routings) == 2
    assert loss.penalties["balance"].raw.item() == pytest.approx(raw.item())
    assert loss.penalties["balance"].weight == 0.01
    assert loss.total.item() == pytest.approx(loss.task.item() + 0.01 * raw.item())


def test_loss_weights_can_be_set():
    arm = arm_of("topk", router={"loss_weights": {"balance": 0.5}})
    loss = arm.loss(batch_of(), torch.arange(6))
    assert loss.total.item() == pytest.approx(loss.task.item() + 0.5 * loss.penalties["balance"].raw.item())


def test_weight_zero_leaves_the_loss_out():
    """0 * inf would make the total NaN."""
    loss = StepLoss(torch.tensor(1.0), None, {"z": Penalty(torch.tensor(torch.inf), 0.0)})
    assert loss.total.item() == 1.0


def test_dense_has_no_routing():
    arm = arm_of("dense")
    loss = arm.loss(batch_of(), torch.arange(6))
    assert not loss.routings
    assert not loss.penalties
    assert arm.causal
    assert not arm.batch_coupled


@pytest.mark.parametrize("name", ROUTED)
def test_prediction_does_not_depend_on_the_batch(name):
    """In evaluation every one of these routers serves an image alike, alone or among others."""
    arm, batch = arm_of(name).eval(), batch_of(4)
    whole = arm.predict(batch).outputs
    for index in range(4):
        alone = arm.predict(Batch(batch.inputs[index : index + 1], batch.targets[index : index + 1])).outputs
        torch.testing.assert_close(whole[index : index + 1], alone, atol=1e-5, rtol=1e-4)


# --- work ---


@pytest.mark.parametrize("name", ["dense", *ROUTED])
def test_nominal_flops_are_those_of_an_evaluation(name):
    arm = arm_of(name).eval()
    flops = arm.predict(batch_of(16)).flops
    assert flops.model / 16 == arm.flops_per_example()
    assert flops.executed == flops.model


def test_drops_cost_no_model_flops():
    loose, tight = (arm_of("switch", router={"capacity_factor": factor, "jitter": 0.0}) for factor in (None, 0.25))
    per_row = loose.mixtures[0].experts.row_cost.training
    kept = []
    for arm in (loose, tight):
        loss = arm.loss(batch_of(), torch.arange(6))
        kept.append((loss.flops.model, sum(routing.work.kept for routing in loss.routings)))
    assert kept[1][1] < kept[0][1] == 2 * 6 * 16
    assert kept[0][0] - kept[1][0] == (kept[0][1] - kept[1][1]) * per_row


def test_padded_rows_are_executed_but_not_model():
    grouped, batched = (arm_of("topk", router={"kernel": kernel}) for kernel in ("grouped", "batched"))
    first, second = (arm.loss(batch_of(), torch.arange(6)).flops for arm in (grouped, batched))
    assert first.model == second.model
    assert second.executed > first.executed


# --- sizes ---


@pytest.mark.parametrize("name", ["dense", *ROUTED])
def test_sizing_counts_without_memory(name):
    """Matching builds hundreds of candidates on the meta device; the counts must be the real ones."""
    real, sized = arm_of(name), arm_of(name, sizing=True)
    assert sized.total_params == real.total_params
    assert sized.active_params == real.active_params
    assert sized.flops_per_example() == real.flops_per_example()
    assert all(p.is_meta for key, p in sized.named_parameters() if ".router." not in key)


def test_active_params_by_hand():
    """Top-2 of 4 experts: half of each bank."""
    arm = arm_of("topk")
    bank = 4 * 2 * 16 * 24
    assert arm.total_params - arm.active_params == 2 * bank // 2
    assert arm_of("switch").total_params - arm_of("switch").active_params == 2 * bank * 3 // 4
    assert arm_of("dense").active_params == arm_of("dense").total_params


def test_expert_width_defaults_to_the_dense_one():
    assert arm_of("topk", experts={"count": 2}).mixtures[0].experts.d_hidden == 64
    assert arm_of("topk", experts={"count": 2}, backbone={**BACKBONE, "hidden": 20}).mixtures[0].experts.d_hidden == 20
    assert arm_of("topk", experts={}).mixtures[0].experts.num_experts == 8


def test_shared_experts_by_hand():
    """Three that take every token beside 2 of 4: three more feed-forwards of 2 * 16 * 24 weights, all of them active."""
    plain, with_shared = arm_of("topk"), arm_of("topk", experts={"count": 4, "hidden": 24, "shared": 3})
    layer, one = with_shared.mixtures[0], 2 * 16 * 24
    assert plain.mixtures[0].shared is None
    assert layer.shared.d_hidden == 72
    assert with_shared.total_params - plain.total_params == 2 * 3 * one
    assert with_shared.active_params - plain.active_params == 2 * 3 * one
    assert with_shared.flops_per_example() - plain.flops_per_example() == 2 * 16 * 3 * 2 * one
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    alone = MixtureLayer(layer.router, layer.experts).eval()
    torch.testing.assert_close(layer.eval()(x)[0], alone(x)[0] + layer.shared(x))
    assert not torch.equal(layer.shared.up, with_shared.mixtures[1].shared.up)


@pytest.mark.parametrize(("name", "number"), [("topk", 0), ("deepseek", 1), ("llama4", 1), ("deepseek_moe", 2)])
def test_shared_experts_default_to_the_router_s_own(name, number):
    shared = arm_of(name).mixtures[0].shared
    assert (shared is None) if number == 0 else shared.d_hidden == number * 24
    assert arm_of(name, experts={"count": 4, "hidden": 24, "shared": 0}).mixtures[0].shared is None


@pytest.mark.parametrize(
    ("name", "option"),
    [("soft", "capacity_factor"), ("mixture_of_depths", "capacity_factor"), ("expert_choice", "eval_capacity_factor"),
     ("dense_gate", "capacity_factor")],
)  # fmt: skip
def test_a_capacity_that_would_limit_nothing_is_refused(name, option):
    """It was taken, and changed nothing: a grid of it would compare an arm with itself."""
    with pytest.raises(UsageError, match=f"router.{option} is 1.5; capacity limits the choices of tokens"):
        arm_of(name, router={option: 1.5})
    assert arm_of(name, router={option: None}).mixtures


def test_moe_every():
    arm = arm_of("topk", backbone={**BACKBONE, "depth": 4, "moe_every": 2})
    routed = [isinstance(block.feed_forward, MixtureLayer) for block in arm.network.blocks]
    assert routed == [False, True, False, True]
    assert len(arm.loss(batch_of(), torch.arange(6)).routings) == 2


def test_options_reach_router_layer_and_bank():
    arm = arm_of(
        "switch",
        experts={"count": 4, "hidden": 24, "kind": "swiglu", "bias": True},
        router={
            "jitter": 0.2,
            "capacity_factor": 3.0,
            "capacity_group": "sequence",
            "priority": "probability",
            "kernel": "loop",
        },
    )
    layer = arm.mixtures[0]
    assert layer.router.jitter == 0.2
    assert (layer.capacity_factor, layer.capacity_group, layer.priority, layer.kernel) == (
        3.0,
        "sequence",
        "probability",
        "loop",
    )
    assert layer.experts.kind_name == "swiglu"
    assert layer.experts.bias


def test_capacity_factor_belongs_to_the_router_that_takes_it():
    layer = arm_of("expert_choice", router={"capacity_factor": 1.0}).mixtures[0]
    assert layer.router.tokens_factor == 1.0
    assert layer.capacity_factor is None


def test_soft_is_offered_the_positions():
    arm = arm_of("soft")
    routing = arm.loss(batch_of(), torch.arange(6)).routings[0]
    assert isinstance(routing.plan, Slots)
    assert routing.plan.dispatch.shape == (6, 16, 4, 4)  # 16 patches over 4 experts


# --- errors ---


@pytest.mark.parametrize(
    ("name", "sections", "message"),
    [
        ("topkk", {}, "unknown arm 'topkk'; did you mean 'topk'"),
        ("topk", {"router": {"topk": 1}}, "did you mean 'top_k'"),
        ("topk", {"router": {"kernal": "loop"}}, "did you mean 'kernel'"),
        ("topk", {"router": {"loss_weights": {"balence": 1}}}, "did you mean 'balance'"),
        ("topk", {"router": {"capacity_group": "token"}}, "arm 'topk': capacity_group is 'token'"),
        ("topk", {"backbone": {**BACKBONE, "moe_every": 3}}, "moe_every is 3, more than there are layers"),
        ("topk", {"backbone": {**BACKBONE, "moe_every": 0}}, "moe_every is 0"),
        ("topk", {"experts": {"shared": -1}}, "arm 'topk': experts.shared is -1; it must be a whole number of at least 0"),
        ("dense", {"backbone": {**BACKBONE, "name": "vitt"}}, "unknown backbone 'vitt'; did you mean 'vit'"),
        ("dense", {"backbone": {**BACKBONE, "heads": 3}}, "arm 'dense': heads is 3"),
        ("dense", {"backbone": {**BACKBONE, "patch_size": 3}}, "patch_size is 3"),
    ],
)
def test_usage_errors(name, sections, message):
    # The loss too: its weights are read with it.
    with pytest.raises(UsageError, match=message):
        arm_of(name, **sections).loss(batch_of(), torch.arange(6))


@pytest.mark.parametrize("name", ["top2", "expert_choice", "soft"])
def test_causal_tasks_refuse_leaks(name):
    with pytest.raises(UsageError, match=f"router '{name}' lets an output depend on later tokens") as caught:
        arm_of(name, task=make_task("language"))
    offered = str(caught.value).partition("causal routers: ")[2].replace(",", " ").replace(";", " ").split()
    assert {"hash", "switch", "topk", "relu"} <= set(offered)
    assert not arm_of(name, task=make_task("language"), router={"allow_leak": True}).causal


def test_causal_tasks_take_the_others():
    for name in ("switch", "topk", "hash"):
        assert arm_of(name, task=make_task("language")).causal
    assert arm_of("top2", task=make_task("language"), router={"capacity_factor": None}).causal
    assert arm_of("expert_choice", task=make_task("language"), router={"across": "batch"}).causal
    offered = causal_routers(arm_of("topk").mixtures[0])
    assert offered == sorted(offered)
    assert {"hash", "switch", "topk", "llama4", "gpt_oss", "cosine", "dense_gate", "relu", "top_p"} <= set(offered)
    assert not {"top2", "expert_choice", "soft"} & set(offered)


def test_causal_alternatives_heed_the_settings_of_the_layer():
    """With router.priority=probability kept, none of the offered routers but the dropless ones would be taken either."""
    layer = arm_of("switch", router={"priority": "probability"}).mixtures[0]
    assert "switch" not in causal_routers(layer)


def test_arm_names():
    assert {"dense", *ROUTED} <= set(arm_names())


# --- calibration ---


def test_balanced_hash_keeps_its_table():
    counts = (1000 / torch.arange(1, 51)).long()
    arm = arm_of("hash", task=make_task(token_counts=counts), router={"method": "balanced", "vocab_size": 50})
    assert torch.equal(arm.mixtures[0].router.table, balanced_table(counts, 4))


def test_balanced_hash_can_be_sized():
    counts = (1000 / torch.arange(1, 51)).long()
    options = {"method": "balanced", "vocab_size": 50}
    assert arm_of("hash", sizing=True, task=make_task(token_counts=counts), router=options).total_params > 0


def test_balanced_hash_without_counts_is_refused():
    with pytest.raises(UsageError, match="needs token counts"):
        arm_of("hash", router={"method": "balanced", "vocab_size": 50})


def test_init_scale_of_a_switch_arm_scales_its_router_and_feed_forwards_and_nothing_else():
    """With moe_every=2 there is a dense feed-forward and a mixture: both, and the gate, start at sqrt(s / fan in)."""
    backbone = {**BACKBONE, "moe_every": 2}
    scaled = dict(arm_of("switch", backbone=backbone, router={"init_scale": 0.1}).named_parameters())
    for name, parameter in arm_of("switch", backbone=backbone).named_parameters():
        if name.endswith("router.weight"):
            factor = (0.1 / 16) ** 0.5 / 0.02
        else:
            factor = 0.1**0.5 if ".feed_forward." in name else 1.0
        torch.testing.assert_close(scaled[name], parameter * factor)
    assert sum(".feed_forward." in name for name in scaled) == 2 + 3
    with pytest.raises(UsageError, match="init_scale is -1.0; it must be above 0"):
        arm_of("switch", router={"init_scale": -1.0}, sizing=True)
