"""The loop: budgets, determinism, schedules, stages, references, and failures that are recorded."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from routelab.baselines.base import Arm, ArmSpec, Prediction, Stage, StepLoss, register_baseline
from routelab.baselines.baseline_registry import BASELINES
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.flops import Flops
from routelab.core.registry import only_for_now
from routelab.data.base import Order, load
from routelab.routers.base import Router, Routing
from routelab.routers.plans import TopK
from routelab.routers.router_registry import ROUTERS, register_router
from routelab.training.run import execute

SMALL = {"name": "vit", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32}


@pytest.fixture(scope="module")
def data():
    return load("digits")


def spec(name="switch", seed=0, **changes):
    made = RunSpec(
        name,
        ArmSpec(name, SMALL, {"count": 4}),
        seed,
        {"name": "digits"},
        Budget(steps=6),
        Optimizer(),
        TrainerOptions(batch_size=32, checks=3),
    )
    return replace(made, **changes)


@pytest.mark.parametrize("name", ["dense", "switch", "top2", "expert_choice", "hash", "soft"])
def test_same_seed_same_bits(data, name):
    first, again, other = (execute(spec(name, seed), data=data).record for seed in (3, 3, 4))
    assert first["status"] == "ok", first["error"]
    assert [point["train/loss"] for point in first["curve"]] == [point["train/loss"] for point in again["curve"]]
    assert first["test"] == again["test"]
    assert first["test"] != other["test"]
    assert len(first["curve"]) == 3
    assert first["steps"] == 6
    flops = [point["flops"] for point in first["curve"]]
    assert flops == sorted(flops)
    assert flops[-1] == first["flops_model"]
    assert first["flops_executed"] >= first["flops_model"]


def test_budgets(data):
    by_steps = execute(spec("dense"), data=data).record
    per_step = by_steps["flops_model"] / 6
    assert execute(spec("dense", budget=Budget(flops=per_step * 4.5)), data=data).record["steps"] == 5
    assert execute(spec("dense", budget=Budget(epochs=0.5)), data=data).record["steps"] == 20
    timed = execute(spec("dense", budget=Budget(seconds=0.3)), data=data).record
    assert timed["status"] == "ok"
    assert timed["seconds"] >= 0.3


def test_accumulation_spends_as_much_per_example(data):
    whole = execute(spec("dense"), data=data).record
    parts = execute(spec("dense", trainer=TrainerOptions(batch_size=16, accumulate=2, checks=3)), data=data).record
    assert parts["steps"] == whole["steps"]
    assert parts["flops_model"] == whole["flops_model"]
    # The same examples in the same order, split in two: equal up to rounding.
    assert parts["test"]["loss"] == pytest.approx(whole["test"]["loss"], rel=1e-4)


def test_the_checkpoint_loads_weights_only(data, tmp_path):
    run = execute(spec("top2"), data=data, folder=tmp_path)
    state = torch.load(tmp_path / "weights.ckpt", weights_only=True)["state_dict"]
    for name, value in run.arm.state_dict().items():
        assert torch.equal(state[f"arm.{name}"], value)


def test_a_loss_that_is_not_finite_is_recorded_with_its_step(data):
    record = execute(spec("dense", optimizer=Optimizer(lr=1e30, clip=0.0, warmup=0.0)), data=data).record
    assert record["status"] == "failed"
    assert "at step" in record["error"]
    assert "optimizer.lr" in record["error"]


def test_a_test_loss_that_is_not_finite_fails_the_run(data):
    """Of an example as no other: written as it stands it would be a loss of null, and no later call could read the table."""
    far = replace(data, test=replace(data.test, inputs=data.test.inputs * torch.inf))
    record = execute(spec("dense"), data=far).record
    assert (record["status"], record["test"]["accuracy"] <= 1.0) == ("failed", True)
    assert record["error"].startswith("the test loss was nan at step 6")


def test_a_broken_router_is_a_failed_record(data):
    with only_for_now(ROUTERS):

        @register_router("wrong_shape")
        class WrongShape(Router):
            def forward(self, inputs):
                x = inputs.x_TD
                return Routing(TopK(torch.zeros(3, 1, dtype=torch.int64), x.new_ones(3, 1), self.num_experts))

        record = execute(spec("wrong_shape"), data=data).record
    assert record["status"] == "failed"
    assert "broke the contract: TopK.expert has shape (3, 1)" in record["error"]


def test_order_is_a_function_of_seed_and_step():
    order, again = Order(10, 4, 1), Order(10, 4, 1)
    epoch = torch.cat([order.batch(step) for step in range(5)])
    assert sorted(epoch[:10].tolist()) == list(range(10))
    assert sorted(epoch[10:].tolist()) == list(range(10))
    assert torch.equal(again.batch(3), order.batch(3))
    other = Order(10, 4, 2)
    assert not torch.equal(other.batch(0), order.batch(0))
    both = Order(10, 4, 1, 2)
    for step in (0, 2, 5):
        assert torch.equal(both.batch(step), torch.stack([order.batch(step), other.batch(step)]))


class Toy(Arm):
    """A linear classifier in two stages; the second one only may move the bias."""

    def build(self, task, seed, *, sizing=False):
        self.task, self.begun = task, []
        self.linear = nn.Linear(64, task.outputs)

    def stages(self):
        return (Stage("weights", 2.0), Stage("bias", 1.0))

    def begin(self, stage):
        self.begun.append(stage)
        if stage == 1:
            self.frozen = self.linear.weight.detach().clone()
            self.linear.weight.requires_grad_(False)

    def loss(self, batch, index):
        return StepLoss(self.task.loss(self.linear(batch.inputs.flatten(1)), batch.targets).mean(), Flops(1.0, 1.0))

    def predict(self, batch):
        return Prediction(self.linear(batch.inputs.flatten(1)), Flops(1.0, 1.0))

    def flops_per_example(self):
        return 1.0


def test_stages_freeze_and_restart_the_optimizer(data):
    with only_for_now(BASELINES):
        register_baseline("toy")(Toy)
        run = execute(spec("toy"), data=data)
    assert run.record["status"] == "ok", run.record["error"]
    assert run.arm.begun == [0, 1]
    assert torch.equal(run.arm.frozen, run.arm.linear.weight)


def test_references_skip_the_loop_but_not_the_record(data):
    class Majority(Arm):
        fit_outside_loop = True

        def build(self, task, seed, *, sizing=False):
            self.outputs = task.outputs

        def fit(self, train, validation):
            self.counts = torch.bincount(train.targets, minlength=self.outputs).float()

        def predict(self, batch):
            return Prediction(self.counts.log().expand(len(batch), -1), Flops(0.0, 0.0))

        def flops_per_example(self):
            return None

    with only_for_now(BASELINES):
        register_baseline("majority")(Majority)
        record = execute(spec("majority"), data=data).record
    assert record["status"] == "ok", record["error"]
    assert record["test"]["loss"] == pytest.approx(2.3026, abs=0.01)
    assert record["flops_per_example"] is None


@pytest.mark.long
def test_compiled_runs_learn_and_keep_their_names(data, tmp_path):
    """Compiled in place: the same parameters by the same names, nearly the same losses, and every row that padding adds."""
    plain = execute(spec("switch"), data=data, folder=tmp_path / "plain").record
    compiled = execute(spec("switch", trainer=TrainerOptions(batch_size=32, checks=3, compile=True)), data=data,
                       folder=tmp_path / "compiled").record  # fmt: skip
    assert compiled["status"] == "ok", compiled["error"]
    for one, other in zip(plain["curve"], compiled["curve"], strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.05)
    assert compiled["flops_model"] == pytest.approx(plain["flops_model"], rel=0.05)
    assert compiled["flops_executed"] >= compiled["flops_model"]
    names = [
        torch.load(tmp_path / part / "weights.ckpt", weights_only=True)["state_dict"].keys() for part in ("plain", "compiled")
    ]
    assert names[0] == names[1]
