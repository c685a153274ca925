"""A run that is cut off anywhere and resumed is the run that was never cut off, to the bit."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from routelab.baselines.base import Arm, ArmSpec, Prediction, Stage, StepLoss, register_baseline
from routelab.baselines.baseline_registry import BASELINES
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.flops import Flops
from routelab.core.registry import only_for_now
from routelab.data.base import load
from routelab.training.checkpoint import FILE, Checkpoint
from routelab.training.observer import Observer
from routelab.training.run import execute

SMALL = {"name": "vit", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32}


@pytest.fixture(scope="module")
def data():
    return load("digits")


def spec(name="switch", **changes):
    trainer = TrainerOptions(batch_size=16, accumulate=2, checks=3, checkpoint_seconds=0.0)
    made = RunSpec(name, ArmSpec(name, SMALL, {"count": 4}), 3, {"name": "digits"}, Budget(steps=9), Optimizer(), trainer)
    return replace(made, **changes)


@pytest.fixture
def resumed(power_cut, data, tmp_path):
    """A run that was cut off before a step, and went on."""

    def run(made, step):
        with power_cut(step):
            execute(made, data=data, folder=tmp_path, key="k")
        return execute(made, data=data, folder=tmp_path, key="k")

    return run


@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_cut_anywhere(resumed, result, data, step):
    """Steps 3 and 6 end with a check; 1, 4 and 8 lie inside a chunk."""
    whole = execute(spec(), data=data)
    again = resumed(spec(), step)
    assert again.record["resumed_at"] == step
    assert [[len(loads) for loads in layers] for layers in again.record["load"]] == [[4]] * 3
    assert result(again) == result(whole)
    for name, value in whole.arm.state_dict().items():
        assert torch.equal(again.arm.state_dict()[name], value), name


NAMES = (
    "dense", "top2", "expert_choice", "hash", "soft", "base", "random", "bagging", "hierarchical_mixture", "mixture_of_depths",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_arm(resumed, result, data, name):
    whole = execute(spec(name), data=data)
    assert result(resumed(spec(name), 4)) == result(whole)


def test_budgets_in_flops_and_cut_twice(power_cut, resumed, result, data, tmp_path):
    made = spec(budget=Budget(flops=3e7))
    whole = execute(made, data=data)
    assert whole.record["steps"] > 6
    with power_cut(2):
        execute(made, data=data, folder=tmp_path, key="k")
    assert result(resumed(made, 5)) == result(whole)


def test_state_of_routers(resumed, result, data):
    """Buffers that `update` moves after each step (biases, multipliers) are part of the state."""
    whole = execute(spec("deepseek"), data=data)
    assert whole.arm.mixtures[0].router.bias.any()
    assert result(resumed(spec("deepseek"), 4)) == result(whole)


@pytest.mark.parametrize("step", [2, 5, 6, 8])
def test_stages(resumed, result, data, step):
    """Cut in either stage: what is frozen, and the optimizer's moments, come back."""
    with only_for_now(BASELINES):

        @register_baseline("staged")
        class Staged(Arm):
            def build(self, task, seed, *, sizing=False):
                self.task = task
                torch.manual_seed(seed)
                self.parts = nn.ModuleList(nn.Linear(64, task.outputs) for _ in range(2))

            def stages(self):
                return (Stage("first"), Stage("second"))

            def begin(self, stage):
                for number, part in enumerate(self.parts):
                    part.requires_grad_(number == stage)

            def outputs(self, batch):
                return sum(part(batch.inputs.flatten(1)) for part in self.parts)

            def loss(self, batch, index):
                return StepLoss(self.task.loss(self.outputs(batch), batch.targets).mean(), Flops(1.0, 1.0))

            def predict(self, batch):
                return Prediction(self.outputs(batch), Flops(1.0, 1.0))

            def flops_per_example(self):
                return 1.0

        whole = execute(spec("staged"), data=data)
        assert whole.record["status"] == "ok", whole.record["error"]
        again = resumed(spec("staged"), step)
        assert again.record["error"] is None
        assert result(again) == result(whole)


@pytest.mark.parametrize(
    ("name", "step"),
    [(name, step) for name in ("adaboost", "gradient_boosting", "snapshot") for step in (1, 6, 16)] + [("stacking", 16)],
)
def test_ensembles_in_stages(resumed, result, data, name, step):
    """Cut in the first stage, at the end of one, and in a later one: weights, scores, steps and what is frozen come back."""
    rounds = {"adaboost": 3, "gradient_boosting": 3}.get(name, 1)
    arm = ArmSpec(name, {"name": "mlp", "d_model": 8, "depth": 1}, {}, {}, {"members": 3})
    made = spec(name, arm=arm, budget=Budget(steps=18 // rounds))
    whole = execute(made, data=data)
    assert whole.record["status"] == "ok", whole.record["error"]
    assert whole.record["steps"] == 18
    again = resumed(made, step)
    assert again.record["resumed_at"] == step
    assert result(again) == result(whole)
    for key, value in whole.arm.state_dict().items():
        assert torch.equal(again.arm.state_dict()[key], value), key


def test_another_runs_state_is_not_taken(power_cut, result, data, tmp_path):
    whole = execute(spec(), data=data)
    with power_cut(4):
        execute(spec("dense"), data=data, folder=tmp_path, key="another")
    again = execute(spec(), data=data, folder=tmp_path, key="k")
    assert again.record["resumed_at"] is None
    assert result(again) == result(whole)


def test_a_damaged_state_is_said_and_the_run_starts_anew(data, tmp_path):
    (tmp_path / FILE).write_bytes(b"PK\x03\x04 not a checkpoint")
    again = execute(spec(), data=data, folder=tmp_path, key="k")
    assert again.record["status"] == "ok"
    assert again.record["resumed_at"] is None
    whole = execute(spec(), data=data)
    assert again.record["test"] == whole.record["test"]
    checkpoint = Checkpoint(tmp_path, "k", None)
    (tmp_path / FILE).write_bytes(b"PK\x03\x04 not a checkpoint")
    assert checkpoint.load(torch.device("cpu")) is None
    assert "is damaged" in checkpoint.problem


def test_a_full_disk_costs_the_way_back_only(data, tmp_path, monkeypatch):
    real = torch.save

    def full(value, place, *rest, **options):
        if str(place).endswith(str(os.getpid())):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        return real(value, place, *rest, **options)

    monkeypatch.setattr(torch, "save", full)
    run = execute(spec(), data=data, folder=tmp_path, key="k")
    assert run.record["status"] == "ok"
    assert "cannot be resumed" in run.record["problems"][0]
    assert not (tmp_path / FILE).exists()


def test_the_observer_hears_every_point_once_more(power_cut, data, tmp_path):
    heard = []

    class Listener(Observer):
        def point(self, point):
            heard.append(point["step"])

    with power_cut(7):
        execute(spec(), data=data, folder=tmp_path, key="k", observer=Listener())
    assert heard == [3, 6]
    execute(spec(), data=data, folder=tmp_path, key="k", observer=Listener())
    assert heard == [3, 6, 3, 6, 9]


PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from routelab.comparison.train_one import train
train(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_with_signal_9(tmp_path, new_store):
    """A real process, killed from outside at a moment of no one's choosing; its MLflow run goes on too."""
    mlflow = pytest.importorskip("mlflow")
    new_store(tmp_path / "mlflow.db")

    def words(name, *more):
        return [
            f"output={tmp_path}/{name}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "arm=top2", "backbone.d_model=16",
            "backbone.depth=1", "backbone.heads=2", "budget.steps=100", "trainer.batch_size=16", "trainer.checks=20",
            "trainer.checkpoint_seconds=0", f"tracking.experiment={name}", *more,
        ]  # fmt: skip

    from routelab.comparison.train_one import train

    whole = train(words("whole"))
    folder = Path(tmp_path / "cut" / "top2-s0")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *words("cut")])
    deadline = time.monotonic() + 120
    while not (folder / FILE).exists() or _step(folder) < 20:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = train(words("cut"))
    assert again.record["resumed_at"] >= 20
    left = {"seconds", "seconds_total", "resumed_at", "memory", "folder", "provenance", "config"}
    for key in whole.record.keys() - left - {"curve"}:
        assert again.record[key] == whole.record[key], key
    timeless = [[{k: v for k, v in p.items() if k != "seconds"} for p in run.record["curve"]] for run in (whole, again)]
    assert timeless[0] == timeless[1]
    weights = [torch.load(tmp_path / name / "top2-s0" / "weights.ckpt", weights_only=True) for name in ("whole", "cut")]
    for name, value in weights[0]["state_dict"].items():
        assert torch.equal(weights[1]["state_dict"][name], value), name
    assert not (folder / FILE).exists()

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("cut").experiment_id])
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/loss")] == list(range(5, 101, 5))


def _step(folder):
    return torch.load(folder / FILE, weights_only=True)["counters"]["step"]
