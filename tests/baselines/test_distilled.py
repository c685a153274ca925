"""The distilled arm: its loss by hand, its teacher charged and left alone, its runs the same when cut off."""

import math
from dataclasses import replace

import pytest
import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.distilled import distance
from routelab.baselines.run_reference import Recorded, digest_of
from routelab.comparison.audit import audit_step
from routelab.comparison.inference_latency import trained
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.errors import UsageError
from routelab.data.base import load
from routelab.data.task import Batch, InputSpec, Task
from routelab.records.run_cache import cell_key
from routelab.training.run import execute

IMAGE = {"name": "vit", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32}
CLASSES = Task("toy", "classification", InputSpec("image", (1, 8, 8)), 3)
TASKS = {
    "classification": (CLASSES, IMAGE),
    "regression": (
        Task("toy", "regression", InputSpec("table", (5,), categories=(0,) * 5), 2),
        {"name": "tokens", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32},
    ),
    "language": (
        Task("toy", "language", InputSpec("text", (6,), vocab_size=256), 256),
        {"name": "decoder", "d_model": 16, "depth": 1, "heads": 2, "hidden": 32},
    ),
}


def batch_of(task, size=4):
    generator = torch.Generator().manual_seed(0)
    if task.kind == "language":
        bytes_BS = torch.randint(0, 256, (size, 7), generator=generator)
        return Batch(bytes_BS[:, :-1], bytes_BS[:, 1:])
    inputs = torch.randn(size, *task.inputs.shape, generator=generator)
    if task.kind == "regression":
        return Batch(inputs, torch.randn(size, 2, generator=generator))
    return Batch(inputs, torch.randint(0, task.outputs, (size,), generator=generator))


def recorded(folder, spec, task, seed=7, run="teacher"):
    """An arm as it is drawn, left as a run leaves it."""
    state = make_arm(spec, task, seed).state_dict()
    place = folder / f"{run}.ckpt"
    torch.save({"state_dict": {f"arm.{name}": value for name, value in state.items()}}, place)
    plain = {"name": spec.name, "backbone": dict(spec.backbone), "experts": dict(spec.experts), "router": dict(spec.router),
             "options": dict(spec.options)}  # fmt: skip
    return Recorded(run, plain, seed, str(place), digest_of(state), 5e9)


def distilled(folder, kind="classification", **options):
    task, shape = TASKS[kind]
    taught = recorded(folder, ArmSpec("topk", shape, {"count": 4}), task)
    spec = ArmSpec("distilled", shape, {"count": 4}, {}, {"teacher": taught.plain(), **options})
    return make_arm(spec, task, 0), batch_of(task)


def ready(arm, batch):
    arm.prepare(batch)
    arm.train()
    return arm


def test_distance_of_classes_by_hand():
    """T = 2 softens the teacher's logits (2 ln 3, 0) to (3/4, 1/4), and the student's to (1/2, 1/2)."""
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    wanted = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert distance(CLASSES, student, teacher, 2.0).item() == pytest.approx(wanted, rel=1e-6)
    assert distance(CLASSES, teacher, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-7)


def test_at_high_temperature_the_gradient_is_the_difference_of_logits():
    """Hinton et al. 2015: for logits of mean zero, T^2 times the gradient tends to (z - v) / K."""
    student = torch.tensor([[1.0, -2.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5, -1.0]])
    distance(CLASSES, student, teacher, 1000.0).backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 3, rtol=1e-2, atol=1e-3)


def test_distance_of_values_is_the_mean_square():
    task = TASKS["regression"][0]
    assert distance(task, torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]]), 3.0).item() == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize("kind", TASKS)
def test_the_loss_weighs_data_and_teacher_on_the_same_batch(tmp_path, kind):
    arm, batch = distilled(tmp_path, kind, weight=0.25, temperature=3.0)
    loss = ready(arm, batch).loss(batch, torch.arange(4))
    student, teacher = arm.student.predict(batch).outputs, arm.teacher.predict(batch).outputs
    data = arm.task.loss(student, batch.targets).mean()
    apart = distance(arm.task, student, teacher, 3.0)
    assert loss.task.item() == pytest.approx(data.item(), rel=1e-6)
    assert loss.penalties["distillation"].raw.item() == pytest.approx(apart.item(), rel=1e-5)
    assert loss.total.item() == pytest.approx(0.75 * data.item() + 0.25 * apart.item(), rel=1e-6)


@pytest.mark.parametrize("base", ["dense", "topk"])
@pytest.mark.parametrize("kind", TASKS)
def test_the_teacher_is_charged_as_the_counter_sees_it(tmp_path, kind, base):
    arm, batch = distilled(tmp_path, kind, base=base)
    found = audit_step("distilled", arm, batch, len(batch))
    assert found.passed, found
    own, teacher = arm.student.train_flops_per_example(), arm.teacher.flops_per_example()
    assert arm.train_flops_per_example() == own + teacher
    loss = arm.loss(batch, torch.arange(4))
    without = arm.student.loss(batch, torch.arange(4))
    assert float(loss.flops.model) - float(without.flops.model) == pytest.approx(4 * teacher)
    assert arm.flops_per_example() == arm.student.flops_per_example()


def test_the_teacher_is_no_part_of_the_arm(tmp_path):
    arm, batch = distilled(tmp_path)
    ready(arm, batch).loss(batch, torch.arange(4))
    alone = make_arm(ArmSpec("dense", IMAGE, {"count": 4}), CLASSES, 0)
    assert arm.total_params == alone.total_params == sum(p.numel() for g in arm.parameter_groups() for p in g.parameters)
    assert {name.removeprefix("student.") for name in arm.state_dict()} == set(alone.state_dict())
    assert not arm.teacher.training
    assert not any(parameter.requires_grad for parameter in arm.teacher.parameters())
    assert all(torch.equal(arm.student.state_dict()[name], value) for name, value in alone.state_dict().items())


def digits_run(folder, **options):
    data = load("digits")
    taught = recorded(folder, ArmSpec("topk", IMAGE, {"count": 4}), data.task)
    arm = ArmSpec("distilled", IMAGE, {"count": 4}, {}, {"teacher": taught.plain(), **options})
    trainer = TrainerOptions(batch_size=16, checks=2, checkpoint_seconds=0.0)
    return RunSpec("distilled", arm, 3, {"name": "digits"}, Budget(steps=6), Optimizer(), trainer), data


def test_training_leaves_the_teacher_alone_and_records_what_it_took(tmp_path):
    spec, data = digits_run(tmp_path)
    run = execute(spec, data=data)
    assert run.record["status"] == "ok", run.record["error"]
    state = torch.load(tmp_path / "teacher.ckpt", weights_only=True)["state_dict"]
    for name, value in run.arm.teacher.state_dict().items():
        assert torch.equal(value, state[f"arm.{name}"]), name
    assert run.record["initial_flops"] == 5e9
    per_step = 16 * run.arm.train_flops_per_example()
    assert run.record["flops_model"] == pytest.approx(6 * per_step, rel=1e-6)
    assert all("train/distillation_loss" in point for point in run.record["curve"])


def test_without_weight_it_is_the_data_alone_to_the_bit(tmp_path):
    spec, data = digits_run(tmp_path, weight=0.0)
    one, other = (execute(each, data=data) for each in (spec, replace(spec, arm=ArmSpec("dense", IMAGE, {"count": 4}))))
    assert one.record["test"] == other.record["test"]
    assert one.record["flops_model"] == other.record["flops_model"]


@pytest.mark.parametrize("step", [1, 4])
def test_cut_off_and_resumed_it_is_the_same_run(tmp_path, power_cut, result, step):
    spec, data = digits_run(tmp_path)
    whole = execute(spec, data=data)
    with power_cut(step):
        execute(spec, data=data, folder=tmp_path / "run", key="k")
    again = execute(spec, data=data, folder=tmp_path / "run", key="k")
    assert again.record["resumed_at"] == step
    assert result(again) == result(whole)
    for name, value in whole.arm.state_dict().items():
        assert torch.equal(again.arm.state_dict()[name], value), name


def test_a_cell_hangs_on_the_teachers_weights_and_not_on_where_they_lie(tmp_path):
    spec, _ = digits_run(tmp_path)
    teacher = spec.arm.options["teacher"]

    def key(**changes):
        return cell_key(replace(spec, arm=spec.arm.with_value("options.teacher", {**teacher, **changes})), "data")

    assert key() == key(weights="elsewhere.ckpt", run="another name", flops=1.0)
    assert key() != key(digest="0" * 20)
    assert key() != key(arm={**teacher["arm"], "router": {"top_k": 1}})
    assert key() != cell_key(replace(spec, arm=spec.arm.with_value("options.temperature", 4.0)), "data")


def test_what_has_learnt_needs_its_teacher_no_more(tmp_path):
    spec, data = digits_run(tmp_path)
    done = execute(spec, data=data, folder=tmp_path / "run")
    (tmp_path / "teacher.ckpt").unlink()
    again = trained(done.record, tmp_path / "run/weights.ckpt", data).eval()
    with torch.no_grad():
        assert torch.equal(again.predict(data.test).outputs, done.arm.eval().predict(data.test).outputs)


def test_weights_that_changed_are_refused(tmp_path):
    spec, data = digits_run(tmp_path)
    recorded(tmp_path, ArmSpec("topk", IMAGE, {"count": 4}), data.task, seed=8)
    with pytest.raises(UsageError, match="have changed since this run was planned"):
        execute(spec, data=data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0}, "temperature is 0; it must be a number above 0"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"weight": 1.5}, "weight is 1.5; it must be a number from 0 to 1"),
        ({"base": "bagging"}, "base is 'bagging'; it must be dense or a router's name"),
        ({"teacher": None}, "teacher is None; it must be a run"),
        ({"temprature": 2.0}, "did you mean 'temperature'"),
    ],
)
def test_wrong_options_are_sentences(tmp_path, options, said):
    with pytest.raises(UsageError, match="distilled") as error:
        distilled(tmp_path, **options)
    assert said in str(error.value)


def test_any_arm_of_the_loop_may_teach(tmp_path):
    task, shape = TASKS["classification"]
    taught = recorded(tmp_path, ArmSpec("ensemble", shape, {}, {}, {"members": 2}), task)
    arm = make_arm(ArmSpec("distilled", shape, {}, {}, {"teacher": taught.plain()}), task, 0)
    batch = batch_of(task)
    loss = ready(arm, batch).loss(batch, torch.arange(4))
    mean = arm.teacher.predict(batch).members.softmax(-1).mean(0)
    wanted = distance(task, arm.student.predict(batch).outputs, mean.log(), 2.0)
    assert loss.penalties["distillation"].raw.item() == pytest.approx(wanted.item(), rel=1e-5)
