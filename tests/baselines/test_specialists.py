"""Specialists see their own part of the data, their combinations are what they are called, and their FLOPs are counted."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.model_merging import mean_parameters, mix_into, posterior_prediction, running_posterior
from routelab.baselines.specialists import COMBINE, random_parts
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.errors import UsageError
from routelab.core.seeds import key
from routelab.data.base import DataSet, load
from routelab.data.task import Batch, InputSpec, Task
from routelab.training.ledger import counter_formulas
from routelab.training.run import execute

SMALL = {"name": "decoder", "d_model": 8, "depth": 2, "heads": 2}
TASK = Task("toy", "language", InputSpec("text", (6,), vocab_size=11), 11, domains=2)


def toy(size=12):
    rows = torch.randint(0, 11, (size, 7), generator=torch.Generator().manual_seed(1))
    return Batch(rows[:, :-1], rows[:, 1:], domain=torch.arange(size) % 3 % 2)


def made(combine, task=TASK, seed=0, **options):
    return make_arm(ArmSpec("specialists", SMALL, {}, {}, {"combine": combine, **options}), task, seed)


def trained(combine, **options):
    """An arm whose specialists have moved apart, in its last stage."""
    arm = made(combine, **options)
    arm.prepare(toy())
    for stage in range(len(arm.stages())):
        arm.begin(stage)
        with torch.no_grad():
            for number in range(2):
                for name, value in arm.members.member(number).named_parameters():
                    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(key(name, number)))
                    value.add_(noise, alpha=0.3)
        arm.finish(stage, toy())
    return arm.eval()


# --- combining ---


def test_the_running_posterior_by_hand():
    """Two networks, ids 0 then 1 then 0: what the first gives to 1 and to 0 against what the second does."""
    probability = torch.tensor([[[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], [[0.6, 0.4], [0.9, 0.1], [0.3, 0.7]]])
    found = running_posterior(probability.log().unsqueeze(1), torch.tensor([[0, 1, 0]])).exp()[:, 0]
    torch.testing.assert_close(found[:, 0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found[:, 1], torch.tensor([0.8, 0.4]) / 1.2)
    torch.testing.assert_close(found[:, 2], torch.tensor([0.8 * 0.5, 0.4 * 0.9]) / 0.76)


def test_the_posterior_gives_a_text_the_mean_of_its_probabilities():
    values = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    rows = torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(1))

    def of_text(logits):
        return -nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(2, 5).sum(1)

    each = torch.stack([of_text(logits) for logits in values])
    torch.testing.assert_close(of_text(posterior_prediction(values, rows[:, :-1])), each.logsumexp(0) - math.log(3))


@pytest.mark.parametrize("combine", COMBINE)
def test_no_output_depends_on_later_bytes(combine):
    arm, batch = trained(combine), toy()
    before = arm.predict(batch).outputs
    for place in range(1, 6):
        changed = batch.inputs.clone()
        changed[:, place:] = (changed[:, place:] + 5) % 11
        after = arm.predict(replace(batch, inputs=changed, targets=(batch.targets + 3) % 11)).outputs
        torch.testing.assert_close(after[:, :place], before[:, :place], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(after[:, place:], before[:, place:], atol=1e-3)


def test_what_each_combination_is():
    batch = toy()
    arms = {combine: trained(combine) for combine in ("oracle", "uniform", "weights")}
    each = [arms["oracle"].members.member(number).network(batch.inputs)[0] for number in range(2)]
    chosen = torch.where((batch.domain == 0).view(-1, 1, 1), *each)
    torch.testing.assert_close(arms["oracle"].predict(batch).outputs, chosen)
    mean = (each[0].softmax(-1) + each[1].softmax(-1)) / 2
    torch.testing.assert_close(arms["uniform"].predict(batch).outputs.exp(), mean)
    one = make_arm(ArmSpec("dense", SMALL), TASK, 0)
    pairs = [dict(arms["weights"].members.member(number).named_parameters()) for number in range(2)]
    with torch.no_grad():
        for name, value in one.named_parameters():
            value.copy_((pairs[0][name] + pairs[1][name]) / 2)
    torch.testing.assert_close(arms["weights"].predict(batch).outputs, one.predict(batch).outputs)


def test_the_oracle_alone_is_marked():
    assert made("oracle").leaks == "the example's domain"
    assert [made(combine).leaks for combine in COMBINE[1:]] == [None] * 5


def test_a_mixture_is_made_of_its_specialists():
    arm = trained("mix")
    members = [dict(arm.members.member(number).network.named_parameters()) for number in range(2)]
    fresh = dict(made("mix").mixture.network.named_parameters())
    network = arm.mixture.network
    mix_into(network, [arm.members.member(number).network for number in range(2)])
    kinds = set()
    for name, value in network.named_parameters():
        dense = name.replace(".experts.", ".")
        kind = "router" if ".router." in name else "expert" if dense != name else "mean"
        kinds.add(kind)
        if kind == "router":
            assert torch.equal(value, fresh[name])
        elif kind == "expert":
            assert torch.equal(value, torch.stack([member[dense] for member in members]))
        else:
            torch.testing.assert_close(value, (members[0][name] + members[1][name]) / 2)
    assert kinds == {"router", "expert", "mean"}


@pytest.mark.parametrize("combine", ["weights", "mix"])
def test_copies_of_one_network_combine_to_that_network(combine):
    """Specialists that have not parted yet: their mean, and the mixture of them, predict what each of them does."""
    arm, batch = made(combine), toy()
    arm.prepare(batch)
    alone = make_arm(ArmSpec("dense", SMALL), TASK, 0).predict(batch).outputs
    for stage in range(len(arm.stages())):
        arm.begin(stage)
        arm.finish(stage, batch)
    torch.testing.assert_close(arm.eval().predict(batch).outputs, alone)


def test_mean_parameters_by_hand():
    networks = [nn.Linear(2, 1, bias=False) for _ in range(3)]
    for value, network in zip((1.0, 2.0, 6.0), networks, strict=True):
        nn.init.constant_(network.weight, value)
    assert mean_parameters(networks)["weight"].tolist() == [[3.0, 3.0]]


# --- training ---


def test_a_specialist_learns_from_its_own_examples_alone():
    """Its gradient is M times that of the dense model on its examples, each with the weight that it has in the whole batch."""
    batch = toy()
    arm = made("oracle")
    arm.prepare(batch)
    arm.begin(0)
    loss = arm.loss(batch, torch.arange(12))
    loss.total.backward()
    whole = 0.0
    for number in range(2):
        dense = make_arm(ArmSpec("dense", SMALL), TASK, 0)
        mine = batch.select(batch.domain == number)
        each = TASK.loss(dense.network(mine.inputs)[0], mine.targets)
        (2 * each.sum() / 12).backward()
        whole += float(each.detach().sum())
        for one, other in zip(arm.members.member(number).parameters(), dense.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)
    assert float(loss.task.detach()) == pytest.approx(whole / 12)


def test_a_specialist_without_an_example_takes_no_step():
    batch = toy()
    arm = made("oracle")
    arm.prepare(batch)
    arm.begin(0)
    mine = (batch.domain == 1).nonzero().squeeze(1)
    arm.loss(batch.select(mine), mine).total.backward()
    assert all(value.grad is None for value in arm.members.member(0).parameters())
    assert all(value.grad is not None for value in arm.members.member(1).parameters())


def test_random_parts_are_balanced_and_drawn_from_the_seed():
    part = random_parts(101, 3, 5)
    assert sorted(torch.bincount(part).tolist()) == [33, 34, 34]
    assert torch.equal(part, random_parts(101, 3, 5))
    assert not torch.equal(part, random_parts(101, 3, 6))
    arm, batch = made("uniform", split="random", seed=5), toy()
    arm.prepare(replace(batch, domain=None))  # it needs no labels
    assert torch.equal(arm._part, random_parts(12, 2, 5))


@pytest.fixture(scope="module")
def data():
    return load("domains", domains=["law", "cpp"], window=16, bytes_per_domain=2e4)


def spec(combine="posterior", steps=20, **options):
    arm = ArmSpec("specialists", SMALL, {}, {}, {"combine": combine, **options})
    trainer = TrainerOptions(batch_size=8, accumulate=2, checks=2, checkpoint_seconds=0.0)
    return RunSpec("s", arm, 3, {"name": "domains"}, Budget(steps=steps), Optimizer(lr=5e-3), trainer)


def test_the_seed_phase_is_a_dense_training_that_all_start_from(monkeypatch, data):
    """Through the loop: when the branches begin, every specialist is the dense arm trained as long at that schedule."""
    from routelab.baselines.specialists import Specialists

    begun, real = [], Specialists.begin

    def begin(self, stage):
        real(self, stage)
        states = [self.members.member(number).state_dict() for number in range(2)]
        begun.append([{name: value.clone() for name, value in state.items()} for state in states])

    monkeypatch.setattr(Specialists, "begin", begin)
    assert execute(spec(seed_share=0.5), data=data).record["status"] == "ok"
    dense = replace(spec(steps=10), arm=ArmSpec("dense", SMALL), optimizer=Optimizer(lr=5e-3, schedule="constant"))
    alone = execute(dense, data=data).arm.state_dict()
    for state in begun[1]:
        assert all(torch.equal(state[name], alone[name]) for name in alone)


def test_one_specialist_on_everything_is_the_dense_arm(data):
    one = execute(spec("uniform", split="none"), data=data)
    dense = execute(replace(spec(), arm=ArmSpec("dense", SMALL)), data=data)
    for name, value in dense.arm.state_dict().items():
        assert torch.equal(one.arm.members.member(0).state_dict()[name], value), name
    assert one.record["flops_model"] == dense.record["flops_model"]
    assert one.record["test"]["loss"] == pytest.approx(dense.record["test"]["loss"], rel=1e-6)


@pytest.mark.parametrize("step", [4, 9, 17])
def test_a_run_cut_off_in_any_stage_is_the_run_that_was_not(power_cut, result, data, tmp_path, step):
    run_spec = spec("router", seed_share=0.4, router_share=0.3)
    whole = execute(run_spec, data=data)
    assert whole.record["status"] == "ok", whole.record["error"]
    with power_cut(step):
        execute(run_spec, data=data, folder=tmp_path, key="k")
    again = execute(run_spec, data=data, folder=tmp_path, key="k")
    assert again.record["resumed_at"] == step
    assert result(again) == result(whole)
    for name, value in whole.arm.state_dict().items():
        assert torch.equal(again.arm.state_dict()[name], value), name


def test_a_training_in_common_gives_what_each_would_come_to_alone(result, data, tmp_path):
    steps = []
    for combine in ("uniform", "oracle", "posterior", "weights"):
        shared = execute(spec(combine, seed_share=0.5), data=data, common=(tmp_path, "k"))
        assert result(shared) == result(execute(spec(combine, seed_share=0.5), data=data)), combine
        steps.append(shared.record["shared_steps"])
    assert steps == [None, 19, 19, 19]


# --- FLOPs ---


@pytest.mark.parametrize("combine", COMBINE)
def test_flops_of_every_stage_are_what_torch_counts(combine):
    arm, batch = made(combine, seed_share=0.3), toy()
    arm.prepare(batch)
    for stage in range(len(arm.stages())):
        arm.begin(stage)
        arm.train()
        for _ in range(2):  # the first call counts the router's cost by running it
            arm.zero_grad()
            with FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
                loss = arm.loss(batch, torch.arange(12))
                loss.total.backward()
        assert float(loss.flops.executed) == pytest.approx(counter.get_total_flops(), rel=0.01), arm.stages()[stage].name
        arm.eval()
        with torch.no_grad():
            arm.finish(stage, batch)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        flops = arm.predict(batch).flops
    assert float(flops.model) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert arm.flops_per_example() == pytest.approx(float(flops.model) / 12, rel=1e-6)


def test_what_a_prediction_costs():
    dense = make_arm(ArmSpec("dense", SMALL), TASK, 0)
    arms = {combine: made(combine) for combine in COMBINE}
    ratio = {combine: arm.flops_per_example() / dense.flops_per_example() for combine, arm in arms.items()}
    assert [ratio[combine] for combine in COMBINE[:4]] == [1, 2, 2, 1]
    assert 1 < ratio["router"] == ratio["mix"] < 2
    sizes = [arms[combine].total_params // dense.total_params for combine in COMBINE[:4]]
    assert sizes == [2, 2, 2, 1]
    assert arms["oracle"].active_params == dense.active_params
    assert arms["oracle"].train_flops_per_example() == dense.train_flops_per_example()


# --- what is said of wrong calls ---


@pytest.mark.parametrize(
    ("options", "task", "said"),
    [
        ({"combine": "posteriour"}, TASK, "unknown combine of arm 'specialists' 'posteriour'; did you mean 'posterior'?"),
        ({"split": "randm"}, TASK, "unknown split of arm 'specialists' 'randm'; did you mean 'random'?"),
        ({"combine": "oracle", "split": "random"}, TASK, "a new example has a domain, but no part by itself"),
        ({"seed_share": 1.0}, TASK, "seed_share is 1.0; it must be a number, at least 0 and below 1"),
        ({"router_share": 0}, TASK, "router_share is 0; it must be a number, above 0 and below 1"),
        ({"seed_share": "half"}, TASK, "seed_share is 'half'; it must be a number"),
        ({"combine": "mix", "router_share": 0.5, "seed_share": 0.5}, TASK, "together they must be below 1"),
        ({}, replace(TASK, domains=0), "'toy' has no domains"),
        ({}, Task("rows", "classification", InputSpec("table", (4,)), 3, domains=2), "'rows' is classification: take oracle"),
    ],
)
def test_a_wrong_call_is_answered_in_a_sentence(options, task, said):
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        make_arm(ArmSpec("specialists", {}, {}, {}, options), task, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("experts", "router", "said"),
    [
        ({"kind": "lora"}, {}, "experts.kind is 'lora', whose experts share their matrices"),
        ({}, {"latent_dim": 4}, "router.latent_dim is 4; specialists, which become the experts, work on all features"),
    ],
)
def test_experts_that_no_specialist_can_become_are_refused(experts, router, said):
    with pytest.raises(UsageError, match=said):
        make_arm(ArmSpec("specialists", SMALL, experts, router, {"combine": "mix"}), TASK, 0)
    make_arm(ArmSpec("specialists", SMALL, experts, router, {"combine": "uniform"}), TASK, 0)


CAPACITY = {"capacity_group": "batch", "allow_leak": True}


@pytest.mark.parametrize("router", [{}, {"capacity_factor": 1.0, **CAPACITY}, {"eval_capacity_factor": 1.0, **CAPACITY}])
def test_what_predicts_marks_the_arm(router):
    """A mixture of specialists with a capacity is marked as the routed arm is; specialists alone have none."""
    others = [make_arm(ArmSpec(name, SMALL, {"count": 2}, router), TASK, 0) for name in ("dense", "topk")]
    for combine in COMBINE[1:]:
        arm = make_arm(ArmSpec("specialists", SMALL, {}, router, {"combine": combine}), TASK, 0)
        for name in ("causal", "batch_coupled", "leaks", "leaks_in_training", "evaluation_coupled"):
            assert getattr(arm, name) == getattr(others[arm.mixes], name), (combine, name)
    assert others[1].batch_coupled == bool(router)


def test_a_task_knows_how_many_domains_its_data_have():
    batch = toy()
    found = DataSet(replace(TASK, domains=0), batch, batch, batch, "here", domain_names=("a", "b", "c"))
    assert found.task.domains == 3
    assert replace(found, domain_names=()).task.domains == 0
