"""On a CUDA device: every kind of arm trains in bf16, and results are those of the CPU."""

import math
from dataclasses import asdict, replace

import pytest

from routelab.baselines.base import ArmSpec
from routelab.baselines.run_reference import Recorded, digest_of, read_weights
from routelab.baselines.specialists import COMBINE
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import WEIGHTS, RunSpec
from routelab.data.base import load
from routelab.routers.router_registry import ROUTERS
from routelab.training.lightning_module import TrainingModule
from routelab.training.run import execute

pytestmark = pytest.mark.gpu
WIDTHS = {"name": "vit", "d_model": 64, "depth": 2, "heads": 2, "hidden": 128}
KIND_ARMS = {
    "topk-linear": {"kind": "linear"},
    "topk-lora": {"kind": "lora"},
    "topk-zero-compute": {"zero": 1, "copy": 1, "constant": 2},
}
ENSEMBLES = [
    "ensemble", "bagging", "adaboost", "gradient_boosting", "snapshot", "batch_ensemble", "stacking", "gated_mixture",
    "hierarchical_mixture",
]  # fmt: skip
ARMS = ["dense", *ROUTERS.names(), *ENSEMBLES, *KIND_ARMS]
STUDENTS = {"distilled": "dense", "distilled-mixture": "topk"}


def spec(name, accelerator, **changes):
    # The GPU's own choice; a CPU's would be float32.
    precision = "auto" if accelerator == "gpu" else "bf16-mixed"
    trainer = TrainerOptions(accelerator=accelerator, precision=precision, batch_size=64, checks=3)
    arm = "topk" if name in KIND_ARMS else name
    experts = {"count": 8, **KIND_ARMS.get(name, {})}
    made = RunSpec(name, ArmSpec(arm, WIDTHS, experts), 0, {"name": "digits"}, Budget(steps=30), Optimizer(), trainer)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def data():
    return load("digits")


@pytest.fixture(scope="module")
def texts():
    return load("domains", domains=["python", "mathematics"], window=32, bytes_per_domain=30000)


@pytest.fixture(scope="module")
def teacher(data, accelerator, tmp_path_factory):
    """A mixture that was trained on the device, as a student is given it."""
    folder = tmp_path_factory.mktemp("teacher")
    made = spec("topk", accelerator)
    record = execute(made, data=data, folder=folder).record
    digest = digest_of(read_weights(folder / WEIGHTS, "teacher"))
    return Recorded("teacher", asdict(made.arm), 0, str(folder / WEIGHTS), digest, record["flops_model"]).plain()


def student(base, teacher, accelerator, **changes):
    taught = ArmSpec("distilled", WIDTHS, {"count": 8}, {}, {"teacher": teacher, "base": base})
    return spec("distilled", accelerator, arm=taught, **changes)


def specialists(combine, accelerator, **changes):
    """With a seed phase, and one of the mixture where there is one."""
    options = {"combine": combine, "seed_share": 0.2}
    made = ArmSpec("specialists", {**WIDTHS, "name": "decoder"}, {}, {}, options)
    return spec("specialists", accelerator, arm=made, data={"name": "domains"}, **changes)


def trains(made, data):
    record = execute(made, data=data).record
    assert record["status"] == "ok", record["error"]
    # Not the loss in training, which rises where members turn to what is hard.
    assert record["test"]["loss"] < math.log(data.task.outputs), "better than an even guess"


def agrees(made, data):
    """In float32, over a few steps: later ones drift apart by rounding, and choices at a tie with them."""
    on = {
        where: execute(replace(made, trainer=replace(made.trainer, accelerator=where, precision="32-true")), data=data).record
        for where in ("cpu", made.trainer.accelerator)
    }
    here, there = on["cpu"], on[made.trainer.accelerator]
    assert [here["error"], there["error"]] == [None, None]
    assert there["curve"][0]["train/loss"] == pytest.approx(here["curve"][0]["train/loss"], rel=1e-3)
    assert there["test"]["loss"] == pytest.approx(here["test"]["loss"], rel=2e-2)
    assert there["flops_per_example"] == here["flops_per_example"]
    return here, there


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains_in_bf16(data, name, accelerator):
    trains(spec(name, accelerator), data)


@pytest.mark.parametrize("name", ARMS)
def test_the_cpu_and_the_gpu_agree(data, name, accelerator):
    agrees(spec(name, accelerator, budget=Budget(steps=3)), data)


@pytest.mark.parametrize("combine", COMBINE)
def test_specialists_train_in_bf16(texts, combine, accelerator):
    trains(specialists(combine, accelerator), texts)


@pytest.mark.parametrize("combine", COMBINE)
def test_specialists_agree(texts, combine, accelerator):
    """Ten steps: two of the seed, six or eight of the specialists, and two of the mixture where there is one."""
    here, there = agrees(specialists(combine, accelerator, budget=Budget(steps=10)), texts)
    # Whose example it is decides what is spent: the same, whatever the device.
    assert there["flops_model"] == pytest.approx(here["flops_model"], rel=1e-6)


@pytest.mark.parametrize("base", STUDENTS.values(), ids=STUDENTS)
def test_students_train_in_bf16(data, teacher, base, accelerator):
    trains(student(base, teacher, accelerator), data)


@pytest.mark.parametrize("base", STUDENTS.values(), ids=STUDENTS)
def test_students_agree(data, teacher, base, accelerator):
    here, there = agrees(student(base, teacher, accelerator, budget=Budget(steps=3)), data)
    name = "train/distillation_loss"
    assert there["curve"][0][name] == pytest.approx(here["curve"][0][name], rel=1e-3)


def test_a_resumed_run_goes_on(data, tmp_path, monkeypatch, accelerator):
    class PowerCutError(BaseException):
        pass

    trainer = TrainerOptions(accelerator=accelerator, checks=3, checkpoint_seconds=0.0)
    made = spec("switch", accelerator, trainer=trainer, budget=Budget(steps=9))
    whole = execute(made, data=data).record
    real = TrainingModule._optimizer_step

    def until(self, share):
        if self.step == 5:
            raise PowerCutError
        real(self, share)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "_optimizer_step", until)
        with pytest.raises(PowerCutError):
            execute(made, data=data, folder=tmp_path, key="k")
    again = execute(made, data=data, folder=tmp_path, key="k").record
    assert again["resumed_at"] == 5
    assert again["test"]["loss"] == pytest.approx(whole["test"]["loss"], rel=2e-2)
    assert again["flops_model"] == pytest.approx(whole["flops_model"], rel=1e-3)
