"""M members trained together are M trainings, whatever the base, and matching knows what they cost."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.ensembles.bagging import bootstrap, out_of_bag
from routelab.baselines.ensembles.ensemble_base import mean_prediction, member_seed
from routelab.baselines.ensembles.member_networks import OneByOne, SideBySide
from routelab.comparison.matching import match_arms
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.config.schema import Match
from routelab.core.errors import UsageError
from routelab.data.base import load
from routelab.data.task import Batch, InputSpec, Task
from routelab.training.ledger import counter_formulas
from routelab.training.run import execute

SMALL = {"name": "vit", "d_model": 8, "depth": 1, "heads": 2, "hidden": 16}


@pytest.fixture(scope="module")
def data():
    return load("digits")


def spec(name, seed=3, backbone=SMALL, clip=0.05, **options):
    """A clip so small that every step is clipped: members that shared a norm would part from those trained alone."""
    arm = ArmSpec(name, backbone, {"count": 4}, {"jitter": 0.0}, options)
    trainer = TrainerOptions(batch_size=16, accumulate=2, checks=2)
    return RunSpec(name, arm, seed, {"name": "digits"}, Budget(steps=6), Optimizer(clip=clip), trainer)


def task_of(kind="classification", outputs=3):
    shape = {"language": InputSpec("text", (5,), vocab_size=7)}.get(kind, InputSpec("table", (4,)))
    return Task("toy", kind, shape, outputs)


def toy(kind, size=12):
    generator = torch.Generator().manual_seed(1)
    if kind == "language":
        rows = torch.randint(0, 7, (size, 6), generator=generator)
        return Batch(rows[:, :-1], rows[:, 1:])
    targets = torch.randn(size, 3, generator=generator) if kind == "regression" else torch.arange(size) % 3
    return Batch(torch.randn(size, 4, generator=generator), targets)


@pytest.mark.parametrize("base", ["dense", "switch"])
def test_members_trained_together_are_the_base_trained_alone(data, base):
    """Through the whole loop: initial values, order of the data, clipping, optimizer, schedule, penalties."""
    together = execute(spec("ensemble", members=3, base=base), data=data).arm
    assert isinstance(together.members, OneByOne if base == "switch" else SideBySide)
    for number in range(3):
        alone = execute(spec(base, seed=member_seed(3, number)), data=data).arm
        for name, value in alone.network.named_parameters():
            if base == "switch":
                mine = dict(together.members.arms[number].network.named_parameters())[name]
            else:
                mine = dict(together.members.network.named_parameters())[name][number]
            # Adam divides by the root of the gradient's square: rounding of a tiny gradient shows in a step of 2e-3.
            torch.testing.assert_close(mine, value, atol=3e-5, rtol=1e-3)


@pytest.mark.parametrize("backbone", ["mlp", "tokens"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_side_by_side_is_one_by_one(kind, backbone):
    """Losses, gradients and predictions, with weights that differ, for batches shared and apart."""
    options = {"mlp": {}, "tokens": {"heads": 2}}[backbone]
    made = ArmSpec("bagging", {"name": backbone, "d_model": 8, "depth": 2, **options}, options={"members": 3})
    arms, batch = [make_arm(made, task_of(kind), 0) for _ in range(2)], toy(kind)
    single = [make_arm(replace(made, name="dense", options={}), task_of(kind), member_seed(0, m)) for m in range(3)]
    arms[1].members = OneByOne(single)
    for index in (torch.arange(12), torch.randint(0, 12, (3, 6), generator=torch.Generator().manual_seed(0))):
        losses = []
        for arm in arms:
            arm.prepare(batch)
            arm.zero_grad()
            loss = arm.loss(batch.select(index), index)
            loss.total.backward()
            losses.append(loss)
        torch.testing.assert_close(losses[0].total, losses[1].total)
        assert losses[0].flops.model == losses[1].flops.model
        for number, one in enumerate(single):
            for name, parameter in one.network.named_parameters():
                mine = dict(arms[0].members.network.named_parameters())[name]
                torch.testing.assert_close(mine.grad[number], parameter.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(arms[0].predict(batch).outputs, arms[1].predict(batch).outputs)


def test_the_decoder_s_members():
    made = ArmSpec("ensemble", {"name": "decoder", "d_model": 8, "depth": 1, "heads": 2}, options={"members": 2})
    arm, batch = make_arm(made, task_of("language", 7), 0), toy("language")
    outputs = arm.predict(batch).outputs
    single = [make_arm(replace(made, name="dense", options={}), task_of("language", 7), member_seed(0, m)) for m in range(2)]
    average = sum(one.predict(batch).outputs.softmax(-1) for one in single) / 2
    torch.testing.assert_close(outputs.exp(), average)


def test_probabilities_are_averaged_and_values_too():
    values = torch.tensor([[[0.0, 0.0]], [[0.0, torch.tensor(3.0).log()]]])  # (1/2, 1/2) and (1/4, 3/4)
    torch.testing.assert_close(mean_prediction(task_of(outputs=2), values).exp(), torch.tensor([[0.375, 0.625]]))
    torch.testing.assert_close(mean_prediction(task_of("regression"), torch.tensor([[[1.0]], [[4.0]]])), torch.tensor([[2.5]]))


# --- bagging ---


def test_bootstrap_counts_are_those_of_n_draws():
    count = bootstrap(5000, 7)
    assert count.sum() == 5000
    assert torch.equal(count, bootstrap(5000, 7))
    assert not torch.equal(count, bootstrap(5000, 8))
    # Binomial(N, 1/N): none with probability 1/e, variance 1. Five standard errors.
    assert (count == 0).double().mean().item() == pytest.approx(0.3679, abs=5 * (0.3679 * 0.6321 / 5000) ** 0.5)
    assert count.var().item() == pytest.approx(1.0, abs=0.1)


def test_out_of_bag_averages_those_that_did_not_see_it():
    values = torch.tensor([[[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.9, 0.1]], [[0.2, 0.8], [0.5, 0.5]]]).log()
    unseen = torch.tensor([[True, False], [False, False], [True, True]])
    found = out_of_bag(task_of(outputs=2), values, unseen).exp()
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    values = torch.tensor([[[1.0]], [[2.0]], [[6.0]]])
    found = out_of_bag(task_of("regression", 1), values, torch.tensor([[True], [False], [True]]))
    torch.testing.assert_close(found, torch.tensor([[3.5]]))


def test_the_out_of_bag_estimate_is_a_direct_computation(data):
    """Example by example, member by member; its work is charged as evaluation."""
    run = execute(spec("bagging", members=3, clip=1.0), data=data)
    arm, record = run.arm.eval(), run.record
    assert arm.omega.value.shape == (3, len(data.train))
    with torch.no_grad():
        probability = arm.predict(data.train).members.softmax(-1)
    right, loss, known = 0, 0.0, 0
    for i in range(len(data.train)):
        mine = [probability[m, i] for m in range(3) if arm.omega.value[m, i] == 0]
        if mine:
            mean = sum(mine) / len(mine)
            known += 1
            right += int(mean.argmax() == data.train.targets[i])
            loss -= float(mean[data.train.targets[i]].log())
    figures = record["figures"]
    assert 0.6 < known / len(data.train) < 0.9
    assert figures["oob_share"] == pytest.approx(known / len(data.train))
    assert figures["oob_accuracy"] == pytest.approx(right / known)
    assert figures["oob_loss"] == pytest.approx(loss / known, rel=1e-5)
    plain = execute(spec("ensemble", members=3, clip=1.0), data=data).record
    passed = record["flops_evaluation"] - plain["flops_evaluation"]
    assert passed == pytest.approx(len(data.train) * record["flops_per_example"])
    assert record["flops_model"] == plain["flops_model"]


def test_a_weight_is_that_many_copies():
    """Omega 2 and 0 give the gradient of a sample in which one example stands twice and another not at all."""
    made = ArmSpec("bagging", {"name": "mlp", "d_model": 8, "depth": 1}, options={"members": 1})
    arm, batch = make_arm(made, task_of(), 0), toy("classification", 4)
    arm.prepare(batch)
    arm.omega.value = torch.tensor([[2.0, 0.0, 1.0, 1.0]])
    weighted = arm.loss(batch, torch.arange(4)).total
    arm.omega.value = torch.ones(1, 4)
    copies = torch.tensor([0, 0, 2, 3])
    torch.testing.assert_close(arm.loss(batch.select(copies), copies).total, weighted)


# --- work ---


@pytest.mark.parametrize("name", ["vit", "tokens", "mlp", "decoder"])
def test_flops_are_those_that_torch_counts(name):
    """Training and evaluation, to the last product: nothing is approximated."""
    kind = "language" if name == "decoder" else "classification"
    shape = InputSpec("image", (1, 8, 8)) if name == "vit" else task_of(kind).inputs
    task, batch = Task("toy", kind, shape, 7), toy(kind, 8)
    if name == "vit":
        batch = Batch(torch.randn(8, 1, 8, 8), batch.targets)
    backbone = {"name": name, "d_model": 8, "depth": 1, **({} if name == "mlp" else {"heads": 2})}
    arm = make_arm(ArmSpec("bagging", backbone, options={"members": 3}), task, 0)
    arm.prepare(batch)
    for apart in (True, False):
        index = torch.arange(8).expand(3, 8) if apart else torch.arange(8)
        with FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
            loss = arm.loss(batch.select(index), index)
            loss.total.backward()
        assert loss.flops.executed == counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        flops = arm.eval().predict(batch).flops
    assert flops.executed == counter.get_total_flops() == 8 * arm.flops_per_example()


# --- size ---


@pytest.mark.parametrize("words", [[], ["data=flights", "data.rows=2000", "backbone.d_model=32", "backbone.depth=2"]])
def test_members_together_cost_what_the_reference_does(words):
    config = resolve([*words, "experts.count=4"]).config
    given = ["dense", "ensemble", {"name": "bagging", "base": "switch", "members": 3}, {"name": "bagging", "members": 2}]
    given[3]["label"] = "two"
    task = load(**config.data).task
    matched = match_arms(arm_choices(config, given), task, Match())
    for arm in matched[1:]:
        assert arm.ratio == pytest.approx(1.0, abs=0.02)
    assert matched[1].choice.spec.options["d_model"] < matched[3].choice.spec.options["d_model"]
    arm = make_arm(matched[1].choice.spec, task, 0)
    assert arm.flops_per_example() == matched[1].flops_per_example
    assert sum(parameter.numel() for parameter in arm.parameters()) == arm.total_params == matched[1].total_params


def test_a_given_width_is_kept():
    config = resolve([]).config
    task = load(**config.data).task
    (_, arm) = match_arms(arm_choices(config, ["dense", {"name": "ensemble", "d_model": 16}]), task, Match())
    assert arm.choice.spec.options["d_model"] == 16
    assert arm.ratio == pytest.approx(1.0, abs=0.02)
    with pytest.raises(UsageError, match=r"arm 'ensemble': hidden=20 gives 0.\d+ of the reference's FLOPs"):
        match_arms(arm_choices(config, ["dense", {"name": "ensemble", "d_model": 16, "hidden": 20}]), task, Match())
    with pytest.raises(UsageError, match="cannot be matched"):
        match_arms(arm_choices(config, ["dense", {"name": "ensemble", "members": 4000}]), task, Match())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "ensemble", "member": 3}, "did you mean 'members'"),
        ({"name": "ensemble", "base": "swich"}, "did you mean 'switch'"),
        ({"name": "ensemble", "base": "bagging"}, "base is 'bagging'; it must be dense or a router's name"),
        ({"name": "ensemble", "members": 0}, "members is 0; it must be a whole number of at least 1"),
        ({"name": "ensemble", "members": "two"}, "members is 'two'; it must be a whole number"),
        ({"name": "bagging", "base": "switch", "jiter": 1.0}, "did you mean 'jitter'"),
    ],
)
def test_usage_errors(given, message):
    config = resolve([]).config
    with pytest.raises(UsageError, match=message):
        match_arms(arm_choices(config, [given]), load("digits").task, Match())


def test_a_router_s_options_reach_the_members(data):
    config = resolve(["router.capacity_factor=1.0"]).config
    given = [{"name": "bagging", "base": "switch", "members": 2, "jitter": 0.3}, "dense"]
    (choice, _) = arm_choices(config, given)
    arm = make_arm(choice.spec, data.task, 0)
    layer = arm.members.arms[1].mixtures[0]
    assert (layer.router.jitter, layer.capacity_factor) == (0.3, 1.0)
