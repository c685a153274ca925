"""Stacking's folds, predictions and combiner, against scikit-learn and a loop over the examples."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.ensembles.ensemble_base import member_seed
from routelab.baselines.ensembles.stacking import combiner_inputs, logistic, ridge
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.errors import UsageError
from routelab.data.base import load
from routelab.data.task import InputSpec, Task
from routelab.training.run import execute

SMALL = {"name": "mlp", "d_model": 8, "depth": 1, "hidden": 16}


@pytest.fixture(scope="module")
def data():
    return load("digits")


@pytest.fixture(scope="module")
def run(data):
    arm = ArmSpec("stacking", SMALL, {}, {}, {"members": 2, "folds": 3})
    spec = RunSpec("stacking", arm, 1, {"name": "digits"}, Budget(steps=40), Optimizer(lr=1e-2), TrainerOptions(checks=2))
    return execute(spec, data=data)


@pytest.mark.parametrize("penalty", [0.1, 3.0])
def test_the_combiner_is_scikit_learn_s_logistic_regression(penalty):
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 6))
    y = (x[:, 0] + random.normal(size=200) > 0).astype(int) + (x[:, 1] > 1)
    oracle = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(x, y)
    weight, bias, flops = logistic(torch.from_numpy(x), torch.from_numpy(y), 3, penalty)
    np.testing.assert_allclose(weight.T.numpy(), oracle.coef_, atol=2e-5)
    # A constant added to all biases changes nothing.
    np.testing.assert_allclose((bias - bias.mean()).numpy(), oracle.intercept_ - oracle.intercept_.mean(), atol=2e-5)
    assert flops > 4 * 200 * 6 * 3


def test_the_combiner_of_values_is_scikit_learn_s_ridge():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(50, 4)) + 1, random.normal(size=(50, 2))
    oracle = Ridge(alpha=2.0).fit(x, y)
    weight, bias, _ = ridge(torch.from_numpy(x), torch.from_numpy(y), 2, 2.0)
    np.testing.assert_allclose(weight.T.numpy(), oracle.coef_)
    np.testing.assert_allclose(bias.numpy(), oracle.intercept_)


def test_rows_are_the_members_and_the_folds(run, data):
    omega = run.arm.omega.value
    assert omega.shape == (2 * (3 + 1), len(data.train))
    assert (omega[:2] == 1).all()
    left_out = omega[2::2] == 0
    assert torch.equal(omega[2::2], omega[3::2])
    assert (left_out.sum(0) == 1).all()
    assert (left_out.sum(1) == len(data.train) // 3).all()


def test_the_combiner_is_fitted_to_what_was_not_shown(run, data):
    """Out-of-fold inputs, member by member and fold by fold; the fit on them is the arm's."""
    arm = run.arm.eval()
    with torch.no_grad():
        values = arm.members(data.train, False).values
    inputs = torch.empty(len(data.train), 20, dtype=torch.float64)
    for i in range(len(data.train)):
        fold = int((arm.omega.value[2::2, i] == 0).nonzero())
        inputs[i] = torch.cat([values[2 + 2 * fold + member, i].double().log_softmax(-1) for member in range(2)])
    weight, bias, _ = logistic(inputs, data.train.targets, 10, 1.0)
    torch.testing.assert_close(arm.weight.double(), weight, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        found = arm.predict(data.test)
        values = arm.members(data.test, False).values[:2]
    expected = combiner_inputs(arm.task, values) @ weight + bias
    torch.testing.assert_close(found.outputs.log_softmax(-1).double(), expected.log_softmax(-1), atol=1e-2, rtol=1e-2)
    assert len(found.members) == 2


def test_folds_start_and_are_fed_as_their_member(run):
    assert list(run.arm.streams) == [member_seed(1, 0), member_seed(1, 1)] * 4
    fresh = make_arm(run.arm.spec, run.arm.task, 1)
    for value in fresh.members.network.parameters():
        assert torch.equal(value[0], value[4])
        assert torch.equal(value[1], value[7])


def test_everything_is_charged(run, data):
    """Three times as many networks as members train besides; a pass; the fit. Inference asks the members alone."""
    template, record = run.arm.template, run.record
    training = 8 * 40 * 64 * template.train_flops_per_example()
    passed = 2 * len(data.train) * template.flops_per_example()
    fitted = record["flops_model"] - training - passed
    evaluations = fitted / (4 * len(data.train) * 20 * 10)
    assert evaluations == pytest.approx(round(evaluations), abs=1e-6)
    assert 5 < evaluations < 300
    assert record["flops_per_example"] == 2 * template.flops_per_example() + 2 * 20 * 10
    assert record["flops_per_example_measured"] == pytest.approx(record["flops_per_example"])
    assert record["status"] == "ok"
    assert sum(record["figures"]["weight_share"]) == pytest.approx(1.0)


def test_regression_too():
    data = load("flights", rows=600)
    arm = ArmSpec("stacking", SMALL, {}, {}, {"members": 2, "folds": 2})
    spec = RunSpec(
        "stacking", arm, 1, {"name": "flights", "rows": 600}, Budget(steps=20), Optimizer(lr=1e-2), TrainerOptions(checks=2)
    )
    record = execute(spec, data=data).record
    assert record["status"] == "ok", record["error"]
    assert record["test"]["loss"] < 2
    assert record["diversity"]["members"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds is 1; it must be at least 2"),
        ({"penalty": 0.0}, "penalty is 0.0"),
        ({"penalty": float("inf")}, "penalty is inf; it must be above 0 and finite"),
    ],
)
def test_usage_errors(options, message):
    with pytest.raises(UsageError, match=message):
        make_arm(ArmSpec("stacking", SMALL, options=options), Task("t", "classification", InputSpec("table", (3,)), 2), 0)
