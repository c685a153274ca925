"""In an mlp an example is a token and the batch its group: nothing in evaluation may depend on the other examples."""

import pytest
import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.moe_arm import per_token_routers
from routelab.core.errors import UsageError
from routelab.core.registry import only_for_now
from routelab.data.task import Batch, InputSpec, Task
from routelab.experts.grouped_experts import ExpertBank
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.build import build_router
from routelab.routers.plans import TopK
from routelab.routers.router_registry import ROUTERS, register_router
from routelab.training.routing_metrics import Tally

LEGAL = (
    "base", "cosine", "deepseek", "deepseek_moe", "dense_gate", "gpt_oss", "hash", "hierarchical", "llama4", "noisy_topk", "relu",
    "sinkhorn", "st_moe", "switch", "top2", "top_p", "topk",
)  # fmt: skip
REFUSED = ("expert_choice", "sequence", "soft")
CATEGORIES = (0, 5, 0, 3)
SHAPE = {"name": "mlp", "d_model": 16, "depth": 2}
TABLE = Task("toy", "classification", InputSpec("table", (4,), categories=CATEGORIES), 3)


def arm_of(name, task=TABLE, backbone=SHAPE, seed=0, **router):
    return make_arm(ArmSpec(name, backbone, {"count": 4, "hidden": 24} if name != "dense" else {}, router), task, seed)


def batch_of(size=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 4, generator=generator)
    for place, codes in enumerate(CATEGORIES):
        if codes:
            x[:, place] = torch.randint(0, codes, (size,), generator=generator).float()
    return Batch(x, torch.randint(0, 3, (size,), generator=generator))


@pytest.mark.parametrize("name", ["dense", *LEGAL])
def test_every_parameter_learns(name):
    arm = arm_of(name)
    loss = arm.loss(batch_of(48), torch.arange(48))
    loss.task.backward()
    assert arm.predict(batch_of()).outputs.shape == (12, 3)
    for key, parameter in arm.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


def test_reading_by_hand():
    """A linear map of the numbers, and the embeddings of the codes added."""
    network = arm_of("dense").network
    x, seen = torch.tensor([[2.0, 4.0, -1.0, 1.0]]), []
    network.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    network(x)
    expected = network.numbers(torch.tensor([2.0, -1.0])) + network.row.codes[4] + network.row.codes[5 + 1]
    torch.testing.assert_close(seen[0][0], expected)


@pytest.mark.parametrize("name", ["dense", *LEGAL])
def test_examples_are_independent_in_evaluation(name):
    arm, batch = arm_of(name).eval(), batch_of()
    whole = arm.predict(batch).outputs
    alone = torch.cat([arm.predict(batch.select(slice(i, i + 1))).outputs for i in range(12)])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(arm.predict(batch.select(order)).outputs, whole[order], atol=1e-5, rtol=1e-4)


def test_training_capacity_couples_the_batch_and_is_recorded():
    assert arm_of("switch").batch_coupled
    assert not arm_of("switch", capacity_factor=None).batch_coupled
    assert not arm_of("dense").batch_coupled
    arm = arm_of("switch", capacity_factor=0.5)
    assert sum(int(r.work.kept) for r in arm.loss(batch_of(), torch.arange(12)).routings) < 24
    assert sum(int(r.work.kept) for r in arm.eval().predict(batch_of()).routings) == 24


# --- refusals ---


@pytest.mark.parametrize("name", REFUSED)
def test_routers_that_mix_examples_are_refused(name):
    with pytest.raises(UsageError, match=f"router '{name}' lets an example's output depend on the rest of its batch") as caught:
        arm_of(name)
    text = str(caught.value)
    assert all(f" {legal}" in text for legal in LEGAL)
    assert not any(f" {other}," in text for other in REFUSED)
    assert "backbone=tokens" in text
    assert "allow_leak" in text
    assert "\n" not in text
    with pytest.raises(UsageError, match="router.allow_leak is 'no'; it must be true or false"):
        arm_of(name, allow_leak="no")


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_of_what_really_happens(name):
    """Overridden, the outputs of one example do change with the others."""
    arm, batch = arm_of(name, allow_leak=True).eval(), batch_of()
    whole = arm.predict(batch).outputs
    alone = torch.cat([arm.predict(batch.select(slice(i, i + 1))).outputs for i in range(12)])
    assert (whole - alone).abs().max() > 1e-4
    assert arm.batch_coupled
    assert arm.leaks == "other examples"


def test_evaluation_under_capacity_is_refused():
    with pytest.raises(UsageError, match=r"^router.eval_capacity_factor=1.0 lets an example's output.*leave it null"):
        arm_of("switch", eval_capacity_factor=1.0)
    assert arm_of("switch", eval_capacity_factor=1.0, allow_leak=True).leaks == "other examples"


def test_hash_by_position_is_refused():
    """Causal and uncoupled, yet it routes an example by its place in the batch."""
    with pytest.raises(UsageError, match="router 'hash' lets"):
        arm_of("hash", method="position")


def test_the_alternative_for_images_is_theirs():
    image = Task("toy", "classification", InputSpec("image", (1, 4, 4)), 3)
    with pytest.raises(UsageError, match="backbone=vit"):
        arm_of("soft", image)
    assert arm_of("topk", image).predict(Batch(torch.randn(5, 1, 4, 4), torch.zeros(5))).outputs.shape == (5, 3)


def test_a_plugin_may_say_that_only_its_training_is_coupled():
    with only_for_now(ROUTERS):

        @register_router("balanced_in_training")
        class Balanced(Router):
            causal = False
            per_token = True

            def __init__(self, d_model, num_experts):
                super().__init__(d_model, num_experts)
                self.weight = torch.nn.Parameter(torch.zeros(num_experts, d_model))

            def forward(self, inputs: RouterInput) -> Routing:
                logits = inputs.x_TD @ self.weight.T
                if self.training:
                    logits = logits - logits.mean(0)
                weight, expert = logits.softmax(-1).topk(1)
                return Routing(TopK(expert, weight, self.num_experts))

        arm = arm_of("balanced_in_training")
        assert "balanced_in_training" in per_token_routers(arm.mixtures[0])
        assert arm.leaks is None


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in ROUTERS.names()]
    + [("hash", {"method": "position"}), ("hash", {"method": "bigram", "vocab_size": 50})],
)
def test_per_token_is_the_truth(name, options):
    """Every built-in: what it declares is what a change of the other tokens, and of the order, shows in evaluation."""
    generator = torch.Generator().manual_seed(0)
    router = build_router(name, d_model=8, num_experts=4, **options)
    router.init_parameters(lambda parameter: generator)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.mul_(20)
    bank = ExpertBank("gelu", num_experts=4, d_model=8, d_hidden=8)
    bank.init_parameters(lambda parameter: generator)
    layer = MixtureLayer(router, bank).eval()
    x, ids = torch.randn(1, 16, 8, generator=generator), torch.randint(0, 50, (1, 16), generator=generator)
    order = torch.randperm(16, generator=generator)
    with torch.no_grad():
        whole = layer(x, ids)[0]
        moved = layer(x[:, order], ids[:, order])[0]
        alone = torch.cat([layer(x[:, i : i + 1], ids[:, i : i + 1])[0] for i in range(16)], 1)
    same = torch.allclose(whole[:, order], moved, atol=1e-5) and torch.allclose(whole, alone, atol=1e-5)
    assert same == layer.per_token


# --- accounts ---


@pytest.mark.parametrize("name", ["switch", "hash", "soft", "expert_choice"])
def test_telemetry_of_a_group_that_is_the_batch(name):
    arm = arm_of(name, allow_leak=True).eval()
    tally = Tally()
    for size in (12, 5):
        found = arm.predict(batch_of(size))
        assert (found.groups, found.positions) == (1, size)
        tally.add(found.routings, found.groups, found.positions)
    told = tally.summary()
    assert tally.tokens == 17
    assert [len(part) for part in tally.first()] == [17, 17]
    if name in ("switch", "hash"):
        assert told["experts_per_token"] == pytest.approx(1.0)


def test_active_parameters_by_hand():
    """Top-1 of 4 experts in each of two layers: a quarter of each bank."""
    arm = arm_of("switch")
    assert arm.total_params - arm.active_params == 2 * (4 * 2 * 16 * 24) * 3 // 4


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (InputSpec("text", (8,), vocab_size=256), {}, "mlp reads tables and images; this data has the kind 'text'"),
        (InputSpec("table", (4,)), {"d_model": 0}, "d_model is 0; it must be at least 1"),
        (
            InputSpec("table", (4,)),
            {"dpeth": 2},
            "unknown option of backbone 'mlp' 'backbone.dpeth'; did you mean 'backbone.depth'",
        ),
    ],
)
def test_errors(inputs, options, message):
    with pytest.raises(UsageError, match=message):
        arm_of("dense", Task("toy", "classification", inputs, 3), {**SHAPE, **options})
