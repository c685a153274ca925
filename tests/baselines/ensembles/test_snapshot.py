"""A snapshot ensemble is one training whose rate falls and rises again, and the networks at the ends of its cycles."""

import math

import pytest
import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.ensembles.ensemble_base import mean_prediction
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.data.base import load
from routelab.training.lightning_module import TrainingModule
from routelab.training.run import execute

SMALL = {"name": "mlp", "d_model": 8, "depth": 1, "hidden": 16}


@pytest.fixture(scope="module")
def data():
    return load("digits")


def spec(steps=12, **options):
    arm = ArmSpec("snapshot", SMALL, {}, {}, {"members": 3, **options})
    return RunSpec("snapshot", arm, 1, {"name": "digits"}, Budget(steps=steps), Optimizer(lr=1e-2), TrainerOptions(checks=3))


def test_rates_optimizer_and_members(data, monkeypatch):
    rates, optimizers, ends = [], set(), []
    real = TrainingModule._optimizer_step

    def watched(self, share):
        real(self, share)
        rates.append(self.optimizer.param_groups[0]["lr"])
        optimizers.add(id(self.optimizer))
        if self.step % 4 == 0:
            ends.append({name: value.clone() for name, value in self.arm.members.member(0).state_dict().items()})

    monkeypatch.setattr(TrainingModule, "_optimizer_step", watched)
    run = execute(spec(), data=data)
    # Huang 2017, eq. 2, T / M = 4: lr / 2 (cos(pi (t mod 4) / 4) + 1).
    assert rates == pytest.approx([1e-2 / 2 * (math.cos(math.pi * (t % 4) / 4) + 1) for t in range(12)])
    assert len(optimizers) == 1
    for number, state in zip((1, 2, 0), ends, strict=True):
        for name, value in run.arm.members.member(number).state_dict().items():
            assert torch.equal(value, state[name])
    with torch.no_grad():
        arm = run.arm.eval()
        values = torch.stack([arm.members.member(number).network(data.test.inputs)[0] for number in range(3)])
    torch.testing.assert_close(arm.predict(data.test).outputs, mean_prediction(arm.task, values))
    assert run.record["steps"] == 12
    assert run.record["flops_model"] == 12 * 64 * arm.template.train_flops_per_example()
    assert run.record["diversity"]["members"] == 3
