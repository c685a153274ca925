"""Initial weights from a run: a mixture of copies computes what the dense model did, and what does not fit is named."""

from dataclasses import replace

import pytest
import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.run_reference import Recorded, digest_of
from routelab.baselines.upcycling import begin_from, taken
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.errors import UsageError
from routelab.data.base import load
from routelab.data.task import Batch, InputSpec, Task
from routelab.records.run_cache import cell_key
from routelab.training.run import execute

HIDDEN = 32
TEXT = Task("toy", "language", InputSpec("text", (12,), vocab_size=64), 64)
SHAPE = {"name": "decoder", "d_model": 16, "depth": 2, "heads": 2, "hidden": HIDDEN}


def spec_of(name="dense", backbone=None, experts=None, **router):
    return ArmSpec(name, {**SHAPE, **(backbone or {})}, {"count": 4, **(experts or {})}, router)


def trained(spec, seed=1, task=TEXT):
    """An arm whose values are all different from what any seed draws, biases too."""
    arm = make_arm(spec, task, seed)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in arm.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return arm


def outputs(arm):
    ids = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return arm.eval().predict(Batch(ids, ids)).outputs


@pytest.mark.parametrize("experts", [{}, {"kind": "swiglu"}, {"bias": True}, {"kind": "lora"}, {"rank": 2}])
@pytest.mark.parametrize("name", ["topk", "dense_gate", "hash"])
def test_a_mixture_of_copies_computes_what_the_dense_model_did(name, experts):
    """Where the weights of a token's experts sum to 1, and none of them is dropped."""
    router = {"topk": {"top_k": 2, "renormalize": True}, "dense_gate": {}, "hash": {"capacity_factor": None}}[name]
    dense = trained(spec_of(experts={key: value for key, value in experts.items() if key != "rank"}))
    mixture = make_arm(spec_of(name, experts=experts, **router), TEXT, 0)
    begin_from(mixture, dense.state_dict(), "run")
    torch.testing.assert_close(outputs(mixture), outputs(dense), rtol=1e-4, atol=1e-5)


def test_where_weights_do_not_sum_to_1_it_computes_something_else():
    """Switch multiplies by the chosen expert's probability."""
    dense, mixture = trained(spec_of()), make_arm(spec_of("switch"), TEXT, 0)
    begin_from(mixture, dense.state_dict(), "run")
    assert not torch.allclose(outputs(mixture), outputs(dense), rtol=1e-2, atol=1e-2)


def test_only_every_second_layer_need_be_routed():
    dense = trained(spec_of())
    mixture = make_arm(spec_of("topk", {"moe_every": 2}, top_k=2), TEXT, 0)
    begin_from(mixture, dense.state_dict(), "run")
    torch.testing.assert_close(outputs(mixture), outputs(dense), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "switch", "deepseek", "hash"])
def test_the_same_arm_goes_on_where_the_run_ended(name):
    before = trained(spec_of(name))
    arm = make_arm(spec_of(name), TEXT, 0)
    begin_from(arm, before.state_dict(), "run")
    for key, value in before.state_dict().items():
        assert torch.equal(arm.state_dict()[key], value), key


def test_another_router_is_drawn_by_the_seed_and_the_experts_are_kept():
    before = trained(spec_of("switch"))
    arm, drawn = (make_arm(spec_of("cosine"), TEXT, 0) for _ in range(2))
    begin_from(arm, before.state_dict(), "run")
    for key, value in arm.state_dict().items():
        source = drawn if ".router." in key else before
        assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (
            spec_of(),
            spec_of("topk", experts={"hidden": 24}),
            "blocks.0.feed_forward.experts.up' has the shape (16, 24) in each expert and (16, 32) in the run's dense feed-forward; "
            "copied experts are as wide as that: set experts.hidden",
        ),
        (spec_of(), spec_of("topk", experts={"shared": 1}), "shared.up' of shape (16, 32) is nowhere in the run"),
        (spec_of(), spec_of("topk", experts={"kind": "swiglu"}), "experts.gate' of shape (4, 16, 32) is nowhere in the run"),
        (spec_of("switch"), spec_of(), "blocks.0.feed_forward.up' of shape (16, 32) is nowhere in the run"),
        (spec_of("switch"), spec_of("switch", experts={"count": 8}), "has the shape (8, 16, 32) here and (4, 16, 32) in the run"),
        (spec_of(experts={"bias": True}), spec_of(), "of shape (32,) has no place in this arm"),
        (spec_of(), spec_of(backbone={"d_model": 32}), "network.embedding' has the shape (64, 32) here and (64, 16) in the run"),
        (spec_of(), ArmSpec("ensemble", SHAPE), "arm 'ensemble' is not one backbone, dense or routed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(source, target, said):
    state = make_arm(source, TEXT, 0).state_dict()
    with pytest.raises(UsageError, match="init.from='run'") as error:
        taken(make_arm(target, TEXT, 0, sizing=True), state, "run")
    assert said in str(error.value)


def test_another_vocabulary_is_named():
    other = replace(TEXT, inputs=InputSpec("text", (12,), vocab_size=100), outputs=100)
    with pytest.raises(UsageError, match=r"embedding' has the shape \(100, 16\) here and \(64, 16\) in the run"):
        taken(make_arm(spec_of(), other, 0), make_arm(spec_of(), TEXT, 0).state_dict(), "run")


def digits_run(folder):
    data, shape = load("digits"), {"name": "vit", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32}
    state = trained(ArmSpec("dense", shape), task=data.task).state_dict()
    torch.save({"state_dict": {f"arm.{name}": value for name, value in state.items()}}, folder / "dense.ckpt")
    init = Recorded("dense-s0", {"name": "dense"}, 1, str(folder / "dense.ckpt"), digest_of(state), 3e9)
    # So small a rate that a step changes nothing that can be seen.
    optimizer = Optimizer(lr=1e-12, weight_decay=0.0)
    spec = RunSpec("topk", ArmSpec("topk", shape, {"count": 4}, {"top_k": 2}), 0, {"name": "digits"}, Budget(steps=1),
                   optimizer, TrainerOptions(checks=1), init=init)  # fmt: skip
    return spec, data, state


def test_a_run_begins_from_the_weights_and_records_what_they_took(tmp_path):
    spec, data, state = digits_run(tmp_path)
    run = execute(spec, data=data)
    assert run.record["initial_flops"] == 3e9
    dense = make_arm(ArmSpec("dense", spec.arm.backbone), data.task, 0)
    dense.load_state_dict(state)
    with torch.no_grad():
        found = data.task.loss(dense.eval().predict(data.test).outputs, data.test.targets).mean().item()
    assert run.record["test"]["loss"] == pytest.approx(found, rel=1e-4)
    assert execute(replace(spec, init=None), data=data).record["initial_flops"] is None


def test_a_cell_hangs_on_the_weights_and_not_on_where_they_lie(tmp_path):
    spec, _, _ = digits_run(tmp_path)
    keys = {
        cell_key(replace(spec, init=init), "data")
        for init in (spec.init, replace(spec.init, run="other", weights="elsewhere", flops=0.0))
    }
    assert len(keys) == 1
    others = {cell_key(replace(spec, init=init), "data") for init in (None, replace(spec.init, digest="0" * 20))}
    assert len(keys | others) == 3
