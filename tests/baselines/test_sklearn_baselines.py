"""scikit-learn's ensembles as arms: their own predictions, no loop, no FLOPs."""

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.comparison.matching import match_arms
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.config.schema import Match
from routelab.core.errors import UsageError
from routelab.data.base import load
from routelab.data.task import Batch, InputSpec, Task
from routelab.training.run import execute

NAMES = ("random_forest", "hist_gradient_boosting", "sk_bagging", "sk_adaboost")


def run_of(name, data, options, source=None):
    arm = ArmSpec(name, {}, {}, {}, options)
    return execute(
        RunSpec(name, arm, 1, source or {"name": "digits"}, Budget(steps=1), Optimizer(), TrainerOptions()), data=data
    )


@pytest.mark.parametrize("name", NAMES)
def test_classification(name):
    data = load("digits")
    run = run_of(name, data, {"members": 30 if name == "sk_bagging" else 10})
    record, found = run.record, run.arm.predict(data.test)
    assert record["status"] == "ok", record["error"]
    numbers = data.test.inputs.flatten(1).numpy()
    probability = run.arm.estimator.predict_proba(numbers)
    np.testing.assert_allclose(found.outputs.exp().numpy(), probability, atol=1e-5)
    assert record["test"]["accuracy"] == pytest.approx((probability.argmax(1) == data.test.targets.numpy()).mean())
    assert record["test"]["accuracy"] > 0.75
    for key in ("flops_model", "flops_executed", "flops_evaluation", "flops_per_example", "active_params", "total_params"):
        assert record[key] is None, key
    assert 0 < record["calibration"]["ece"] < 1
    assert ("oob_score" in record["figures"]) == (name == "sk_bagging")


@pytest.mark.parametrize("name", NAMES)
def test_regression(name):
    data = load("flights", rows=1500)
    record = run_of(name, data, {"members": 5}, {"name": "flights", "rows": 1500}).record
    assert record["status"] == "ok", record["error"]
    assert record["test"]["loss"] < 2
    assert record["calibration"] == {}


@pytest.mark.parametrize("name", NAMES)
def test_several_values_are_learned_or_refused(name):
    task = Task("toy", "regression", InputSpec("table", (3,)), 2)
    inputs = torch.rand(80, 3, generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs, torch.stack([inputs.sum(1), inputs[:, 0]], dim=1))
    spec = ArmSpec(name, options={"members": 20})
    if name in ("hist_gradient_boosting", "sk_adaboost"):
        with pytest.raises(UsageError, match="it learns 1 value of an example, and 'toy' has 2; random_forest and sk_bagging"):
            make_arm(spec, task, 0)
        return
    arm = make_arm(spec, task, 0)
    arm.fit(batch, batch)
    assert task.summary(task.statistics(arm.predict(batch).outputs, batch.targets))["r2"] > 0.9
    assert arm.figures(batch) == ({}, None)


def test_a_tree_has_a_depth():
    with pytest.raises(UsageError, match="depth is 0; it must be a whole number of at least 1"):
        make_arm(ArmSpec("sk_bagging", options={"depth": 0}), load("digits").task, 0)


def test_a_single_tree():
    data = load("digits")
    run = run_of("sk_bagging", data, {"members": 1, "bootstrap": False})
    tree = DecisionTreeClassifier(random_state=0).fit(data.train.inputs.flatten(1).numpy(), data.train.targets.numpy())
    train = run.arm.predict(data.train)
    assert (train.outputs.argmax(-1) == data.train.targets).all()
    mine = run.record["test"]["accuracy"]
    assert mine == pytest.approx(tree.score(data.test.inputs.flatten(1).numpy(), data.test.targets.numpy()), abs=0.06)


@pytest.mark.parametrize("on", ["flops_per_example", "total_params"])
def test_they_are_exempt_from_matching(on):
    config = resolve([]).config
    matched = match_arms(arm_choices(config, ["dense", *NAMES]), load("digits").task, Match(on=on))
    assert [arm.ratio for arm in matched[1:]] == [None] * 4
