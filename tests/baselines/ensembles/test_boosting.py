"""Boosting against its oracles: scikit-learn's AdaBoost on the same stage predictions, and Friedman's steps one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.ensemble import AdaBoostClassifier, AdaBoostRegressor
from sklearn.tree import DecisionTreeRegressor

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.ensembles.adaboost import r2, samme, votes, weighted_median
from routelab.baselines.ensembles.gradient_boosting import LONGEST, first_scores, line_search, residuals
from routelab.baselines.ensembles.member_networks import Outputs
from routelab.comparison.matching import train_flops
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.errors import UsageError
from routelab.core.flops import Flops
from routelab.data.base import load
from routelab.data.task import Batch, InputSpec, Task
from routelab.training.run import execute

N, CLASSES = 90, 4
SMALL = {"name": "mlp", "d_model": 8, "depth": 1, "hidden": 16}


def task_of(kind="classification", outputs=CLASSES):
    return Task("toy", kind, InputSpec("table", (3,)), outputs)


class Scripted(ClassifierMixin, BaseEstimator):
    """Predicts what it is told, stage by stage, and remembers the weights that it was given."""

    script, seen, stage = None, [], 0

    def fit(self, x, y, sample_weight=None):
        self.classes_ = np.unique(y)
        self.mine = Scripted.stage
        Scripted.stage += 1
        Scripted.seen.append(sample_weight.copy())
        return self

    def predict(self, x):
        return Scripted.script[self.mine][x[:, 0].astype(int)]


def scripts(case):
    """Predictions (M, N) of stages that are wrong on some share of the examples."""
    random = np.random.default_rng(0)
    truth = random.integers(CLASSES, size=N)
    truth[:CLASSES] = range(CLASSES)
    wrong = {"goes on": (0.3, 0.2, 0.5, 0.4), "perfect": (0.3, 0.0, 0.3, 0.3), "guessing": (0.3, 0.2, 0.95, 0.3)}[case]
    made = []
    for share in wrong:
        stage = truth.copy()
        which = random.permutation(N)[: round(share * N)]
        stage[which] = (truth[which] + random.integers(1, CLASSES, size=len(which))) % CLASSES
        made.append(stage)
    return truth, np.stack(made)


def one_hot(stages):
    return torch.nn.functional.one_hot(torch.from_numpy(stages), CLASSES).float()


@pytest.mark.parametrize("shrinkage", [1.0, 0.4])
@pytest.mark.parametrize("case", ["goes on", "perfect", "guessing"])
def test_samme_is_scikit_learn_s(case, shrinkage):
    """Weights of every stage, errors, votes, where it stops, and the prediction."""
    truth, stages = scripts(case)
    Scripted.script, Scripted.seen, Scripted.stage = stages, [], 0
    x = np.arange(N, dtype=float)[:, None]
    oracle = AdaBoostClassifier(Scripted(), n_estimators=len(stages), learning_rate=shrinkage).fit(x, truth)
    weight, errors, alphas, weights = torch.ones(N, dtype=torch.float64), [], [], []
    for stage in stages:
        weights.append(weight)
        verdict = samme(weight, torch.from_numpy(stage != truth), CLASSES, shrinkage)
        if verdict.alpha is not None:
            alphas.append(verdict.alpha)
            errors.append(verdict.error)
        if verdict.weight_N is None:
            break
        weight = verdict.weight_N
    assert len(weights) == len(Scripted.seen) == {"goes on": 4, "perfect": 2, "guessing": 3}[case]
    for mine, theirs in zip(weights, Scripted.seen, strict=True):
        np.testing.assert_allclose(mine.numpy() / N, theirs, rtol=1e-10)
    kept = len(oracle.estimators_)
    assert len(alphas) == kept
    np.testing.assert_allclose(alphas, oracle.estimator_weights_[:kept], rtol=1e-12)
    np.testing.assert_allclose(errors, oracle.estimator_errors_[:kept], rtol=1e-12)
    mine = votes(one_hot(stages[:kept]), alphas)
    assert np.array_equal(mine.argmax(-1).numpy(), oracle.predict(x))
    # Theirs gives other classes -1 / (K - 1) and divides by the sum of the votes.
    theirs = (mine * (1 + 1 / (CLASSES - 1)) - sum(alphas) / (CLASSES - 1)) / sum(alphas)
    np.testing.assert_allclose(theirs.numpy(), oracle.decision_function(x), atol=1e-6)


def test_samme_by_hand():
    """One of four is wrong, two classes: err 1/4, alpha ln 3; its weight is 3 of 6 then, so a half."""
    verdict = samme(torch.ones(4), torch.tensor([True, False, False, False]), 2)
    assert verdict.error == 0.25
    assert verdict.alpha == pytest.approx(np.log(3))
    torch.testing.assert_close(verdict.weight_N, torch.tensor([2.0, 2 / 3, 2 / 3, 2 / 3]))


class Told:
    """Stands in for the networks: member m's outputs on example i are given, i being the first number of its inputs."""

    def __init__(self, values_MNK):
        self.values = torch.as_tensor(values_MNK, dtype=torch.float32)

    def one(self, number, batch):
        return Outputs(self.values[number, batch.inputs[:, 0].long()].unsqueeze(0), Flops(7.0, 7.0))

    def __call__(self, batch, apart, which):
        return Outputs(self.values[which][:, batch.inputs[:, 0].long()], Flops(7.0, 7.0))


def arm_of(name, values, task, train, **options):
    """An arm whose stages are as good as trained: only what happens between them is left to do."""
    arm = make_arm(ArmSpec(name, SMALL, options={"members": len(values), **options}), task, 0)
    arm.prepare(train)
    arm.__dict__["members"] = Told(values)
    del arm._modules["members"]
    for stage in range(len(values)):
        arm.stage = stage
        assert arm.finish(stage, train).model == 7.0
        if arm.done:
            break
    return arm


@pytest.mark.parametrize("case", ["goes on", "perfect", "guessing"])
def test_the_arm_s_stages_are_scikit_learn_s(case):
    truth, stages = scripts(case)
    Scripted.script, Scripted.seen, Scripted.stage = stages, [], 0
    x = np.arange(N, dtype=float)[:, None]
    oracle = AdaBoostClassifier(Scripted(), n_estimators=len(stages), learning_rate=0.6).fit(x, truth)
    inputs = torch.zeros(N, 3)
    inputs[:, 0] = torch.arange(N)
    train = Batch(inputs, torch.from_numpy(truth))
    arm = arm_of("adaboost", one_hot(stages), task_of(), train, shrinkage=0.6)
    kept = len(oracle.estimators_)
    assert int(arm.finished) == kept
    np.testing.assert_allclose(arm.omega.value[: len(Scripted.seen)].numpy() / N, np.stack(Scripted.seen), rtol=1e-5)
    np.testing.assert_allclose(arm.alpha[:kept].numpy(), oracle.estimator_weights_[:kept], rtol=1e-5)
    assert np.array_equal(arm.predict(train).outputs.argmax(-1).numpy(), oracle.predict(x))


def test_batches_are_drawn_by_the_weights_or_weighed_by_them():
    """Weights 0, 1, 3 and 0 of the second stage: drawn, the mean loss of examples 1 and 2, a quarter and three quarters of them,
    whatever batch was given; weighed, the given batch's."""
    random = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(4, 3, generator=random), torch.arange(4))
    arms = [make_arm(ArmSpec("adaboost", SMALL, options={"resample": drawn}), task_of(), 0) for drawn in (True, False)]
    each = task_of().loss(arms[0].members.one(1, batch).values[0], batch.targets).detach()
    torch.manual_seed(1)
    found = []
    for arm in arms:
        arm.prepare(batch)
        arm.begin(1)
        arm.omega.value[1] = torch.tensor([0.0, 1.0, 3.0, 0.0])
        index = torch.tensor([0, 1] * 2000)
        found.append(arm.loss(batch.select(index), index))
    # Four standard errors of 4,000 draws.
    bound = 4 * float((each[1] - each[2]).abs()) * (0.25 * 0.75 / 4000) ** 0.5
    drawn, weighed = (loss.task.detach() for loss in found)
    assert float(drawn) == pytest.approx(float(each[1] + 3 * each[2]) / 4, abs=bound)
    torch.testing.assert_close(weighed, each[1] / 2)
    assert found[0].flops == found[1].flops
    assert bound < 0.2 * abs(float(drawn - weighed))


class ScriptedValues(RegressorMixin, BaseEstimator):
    """As `Scripted`, for values. scikit-learn draws a sample by the weights instead of passing them on."""

    script, stage = None, 0

    def fit(self, x, y):
        self.mine = ScriptedValues.stage
        ScriptedValues.stage += 1
        return self

    def predict(self, x):
        return ScriptedValues.script[self.mine][x[:, 0].astype(int)]


@pytest.mark.parametrize("shrinkage", [1.0, 0.4])
def test_r2_is_scikit_learn_s(shrinkage):
    random = np.random.default_rng(2)
    truth = random.normal(size=N)
    ScriptedValues.script, ScriptedValues.stage = (
        truth + random.normal(size=(5, N)) * np.array([[0.3], [0.9], [0.5], [2], [1]]),
        0,
    )
    x = np.arange(N, dtype=float)[:, None]
    oracle = AdaBoostRegressor(ScriptedValues(), n_estimators=5, learning_rate=shrinkage, random_state=0).fit(x, truth)
    weight, alphas, errors = torch.ones(N, dtype=torch.float64), [], []
    for stage in ScriptedValues.script:
        verdict = r2(weight, torch.from_numpy(np.abs(stage - truth)), shrinkage)
        alphas.append(verdict.alpha)
        errors.append(verdict.error)
        weight = verdict.weight_N
    np.testing.assert_allclose(alphas, oracle.estimator_weights_, rtol=1e-10)
    np.testing.assert_allclose(errors, oracle.estimator_errors_, rtol=1e-10)
    values = torch.from_numpy(ScriptedValues.script).unsqueeze(-1)
    np.testing.assert_allclose(weighted_median(values, torch.tensor(alphas))[:, 0].numpy(), oracle.predict(x), rtol=1e-6)


def test_r2_ends_where_a_member_is_worse_than_half():
    assert r2(torch.ones(3), torch.tensor([1.0, 1.0, 0.5])).weight_N is None
    assert r2(torch.ones(3), torch.zeros(3)).alpha == 1.0


# --- gradient boosting ---


def rows(kind):
    random = np.random.default_rng(3)
    x = random.normal(size=(N, 3)).astype(np.float32)
    if kind == "regression":
        return x, torch.from_numpy(np.sin(2 * x[:, :1]) + 0.3 * x[:, 1:2]).float()
    return x, torch.from_numpy((x[:, 0] > 0).astype(int) + 2 * (x[:, 1] + 0.5 * random.normal(size=N) > 0).astype(int))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_gradient_boosting_with_stumps_follows_a_direct_computation(kind):
    """Stumps fitted to the residuals that the arm computes; scores, steps and predictions by scipy and numpy alone."""
    x, targets = rows(kind)
    outputs, shrinkage, stages = (1, 0.3, 5) if kind == "regression" else (CLASSES, 0.3, 5)
    task = task_of(kind, outputs)
    inputs = torch.from_numpy(x).clone()
    inputs[:, 0] = torch.arange(N)
    train = Batch(inputs, targets)
    y = targets.numpy() if kind == "regression" else np.eye(CLASSES)[targets.numpy()]
    if kind == "regression":
        scores = np.repeat(y.mean(0, keepdims=True), N, 0)
    else:
        scores = np.repeat(np.log(y.mean(0, keepdims=True)), N, 0)

    def loss(scores):
        if kind == "regression":
            return ((y - scores) ** 2).mean()
        return (np.log(np.exp(scores).sum(1)) - (scores * y).sum(1)).mean()

    steps, rhos, losses = [], [], [loss(scores)]
    for _ in range(stages):
        shares = scores if kind == "regression" else np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        mine = residuals(task, torch.from_numpy(scores), targets)
        np.testing.assert_allclose(mine.numpy(), y - shares, atol=1e-6)
        stump = DecisionTreeRegressor(max_depth=1).fit(x, y - shares)
        step = stump.predict(x).reshape(N, outputs)
        found = minimize_scalar(
            lambda rho, at=scores, step=step: loss(at + rho * step), bounds=(0, 50), method="bounded", options={"xatol": 1e-9}
        )
        rhos.append(found.x)
        steps.append(step)
        scores = scores + shrinkage * found.x * step
        losses.append(loss(scores))
    arm = arm_of("gradient_boosting", np.stack(steps), task, train, shrinkage=shrinkage)
    np.testing.assert_allclose(arm.rho.numpy(), rhos, rtol=2e-4)
    np.testing.assert_allclose(arm.scores.value.numpy(), scores, atol=1e-3)
    np.testing.assert_allclose(arm.predict(train).outputs.numpy(), scores, atol=1e-3)
    assert losses == sorted(losses, reverse=True)


def test_line_search_by_hand():
    task = task_of("regression", 1)
    zero, step = torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])
    assert line_search(task, zero, step, torch.tensor([[1.0], [1.0]])) == pytest.approx(3 / 5)  # sum r h / sum h^2
    assert line_search(task, zero, -step, torch.tensor([[1.0], [1.0]])) == 0.0
    # Two classes, all steps alike, 3 of 4 right: softmax(rho) = 3/4 at rho = ln 3 for a step of 1 in one score.
    task, step = task_of(outputs=2), torch.tensor([[1.0, 0.0]] * 4)
    assert line_search(task, torch.zeros(4, 2), step, torch.tensor([0, 0, 0, 1])) == pytest.approx(np.log(3))
    assert line_search(task, torch.zeros(4, 2), step, torch.tensor([0, 0, 0, 0])) == LONGEST
    assert line_search(task, torch.zeros(4, 2), step, torch.tensor([1, 1, 1, 1])) == 0.0


def test_first_scores():
    torch.testing.assert_close(first_scores(task_of(outputs=2), torch.tensor([0, 0, 0, 1])).exp(), torch.tensor([0.75, 0.25]))
    assert first_scores(task_of(outputs=3), torch.tensor([0, 1])).isfinite().all()
    torch.testing.assert_close(first_scores(task_of("regression", 1), torch.tensor([[1.0], [3.0]])), torch.tensor([2.0]))


# --- in the loop ---


@pytest.fixture(scope="module")
def data():
    return load("digits")


def run_spec(name, steps=12, **options):
    trainer = TrainerOptions(batch_size=32, checks=3)
    arm = ArmSpec(name, SMALL, {"count": 2}, {}, options)
    return RunSpec(name, arm, 1, {"name": "digits"}, Budget(steps=steps), Optimizer(lr=1e-2), trainer)


@pytest.mark.parametrize(("name", "base"), [("adaboost", "dense"), ("gradient_boosting", "dense"), ("adaboost", "switch")])
def test_stages_cost_their_steps_and_their_passes(data, name, base):
    """A budget in steps is each member's; what is charged is a member's step each, and a pass over the split for each stage."""
    run = execute(run_spec(name, members=3, base=base), data=data)
    assert run.record["status"] == "ok", run.record["error"]
    assert run.record["steps"] == 36
    template = run.arm.template
    passes = 3 * len(data.train) * template.flops_per_example()
    seen = 36 * 32 * template.train_flops_per_example() + passes
    assert run.record["flops_model"] == pytest.approx(seen, rel=1e-6 if base == "dense" else 0.05)
    # What is foretold of it by the examples that the budget draws for each member, 12 * 32.
    assert 12 * 32 * train_flops(run.arm) == pytest.approx(seen - passes, rel=1e-6)
    if name == "adaboost":
        assert len(run.record["figures"]["alpha"]) == run.record["figures"]["members_kept"] == 3


def test_members_are_frozen_when_their_stage_ends(data):
    run = execute(run_spec("adaboost", members=3), data=data)
    alone = execute(run_spec("dense"), data=data)
    first = dict(run.arm.members.member(0).network.named_parameters())
    for name, parameter in alone.arm.network.named_parameters():
        assert torch.equal(first[name], parameter), "stage 0 weighs all alike: it is the dense arm, and stays so"


def test_boosting_improves_on_its_first_member(data):
    run = execute(run_spec("gradient_boosting", steps=60, members=6), data=data)
    losses = [point["val/loss"] for point in run.record["curve"]]
    assert losses[-1] < losses[0] < 2.303
    assert len(run.record["figures"]["rho"]) == 6


def test_adaboost_of_values_trains():
    flights = load("flights", rows=600)
    spec = run_spec("adaboost", members=3)
    record = execute(RunSpec(**{**vars(spec), "data": {"name": "flights", "rows": 600}}), data=flights).record
    assert record["status"] == "ok", record["error"]
    assert record["test"]["loss"] < 2
    assert record["figures"]["members_kept"] >= 1


def test_samme_stops_by_its_rule(data):
    """Thirty examples are learned by heart, so a member errs on none: it is the last, and the rest of the budget is left."""
    few = data.train.select(slice(0, 30))
    small = type(data)(data.task, few, data.validation, data.test, data.source)
    record = execute(run_spec("adaboost", steps=100, members=8), data=small).record
    assert record["status"] == "ok", record["error"]
    assert record["figures"]["members_kept"] < 8
    assert record["figures"]["error"][-1] == 0.0
    assert record["steps"] < 800
    assert record["curve"][-1]["step"] == record["steps"]


def test_a_first_member_that_guesses_fails_the_run():
    truth, _ = scripts("goes on")
    inputs = torch.zeros(N, 3)
    inputs[:, 0] = torch.arange(N)
    with pytest.raises(ValueError, match="no better than guessing: nothing can be boosted"):
        arm_of("adaboost", one_hot((truth[None] + 1) % CLASSES), task_of(), Batch(inputs, torch.from_numpy(truth)))


@pytest.mark.parametrize(
    ("name", "kind", "options", "message"),
    [
        ("adaboost", "classification", {"shrinkage": 0.0}, "shrinkage is 0.0; it must be above 0"),
        ("adaboost", "classification", {"shrinkage": float("inf")}, "shrinkage is inf; it must be above 0 and finite"),
        ("gradient_boosting", "classification", {"subsample": 1.5}, "subsample is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_usage_errors(name, kind, options, message):
    with pytest.raises(UsageError, match=message):
        make_arm(ArmSpec(name, SMALL, options=options), task_of(kind), 0)


@pytest.mark.parametrize("name", ["adaboost", "gradient_boosting", "stacking", "random_forest"])
def test_language_models_are_refused_in_a_sentence(name):
    task = Task("bytes", "language", InputSpec("text", (8,), vocab_size=16), 16)
    with pytest.raises(UsageError, match=f"arm '{name}'"):
        make_arm(ArmSpec(name, {"d_model": 8, "depth": 1, "heads": 2}), task, 0)


def test_a_subsample_is_shown_to_each_stage():
    x, targets = rows("classification")
    arm = make_arm(ArmSpec("gradient_boosting", SMALL, options={"members": 3, "subsample": 0.5}), task_of(), 0)
    arm.prepare(Batch(torch.from_numpy(x), targets))
    assert ((arm.omega.value == 0).sum(1) == N // 2).all()
    torch.testing.assert_close(arm.omega.value.mean(1), torch.ones(3))
    assert not torch.equal(arm.omega.value[0], arm.omega.value[1])


def test_values_may_stand_in_a_column_or_in_a_row():
    """One target of each example as (N, 1), or as (N,)."""
    generator = torch.Generator().manual_seed(0)
    task = Task("toy", "regression", InputSpec("table", (3,)), 1)
    column = Batch(torch.randn(12, 3, generator=generator), torch.randn(12, 1, generator=generator))
    row = replace(column, targets=column.targets.squeeze(1))
    outputs = torch.randn(12, 1, generator=generator)
    assert task.summary(task.statistics(outputs, row.targets)) == task.summary(task.statistics(outputs, column.targets))
    torch.testing.assert_close(first_scores(task, row.targets), column.targets.mean(0))
