"""Every ensemble trains on every task that it makes sense for: images, a table's regression, a language model; and where it does
not, it says why in a sentence."""

import math
from functools import cache

import pytest

from routelab.baselines.base import ArmSpec
from routelab.baselines.baseline_registry import BASELINES
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.config.run_options import Budget, Optimizer, TrainerOptions
from routelab.config.run_spec import RunSpec
from routelab.core.errors import UsageError
from routelab.core.registry import BUILT_IN
from routelab.data.base import load
from routelab.training.run import execute

DATA = {
    "digits": ({}, {"name": "mlp", "d_model": 8, "depth": 1}),
    "flights": ({"rows": 600}, {"name": "tokens", "d_model": 8, "depth": 1, "heads": 2}),
    "domains": (
        {"bytes_per_domain": 30_000, "window": 16, "domains": ["law", "mathematics"]},
        {"name": "decoder", "d_model": 8, "depth": 1, "heads": 2},
    ),
}
ARMS = {
    "ensemble": {"members": 2},
    "bagging": {"members": 2},
    "adaboost": {"members": 2},
    "gradient_boosting": {"members": 2},
    "snapshot": {"members": 2},
    "batch_ensemble": {"members": 2},
    "stacking": {"members": 2, "folds": 2},
    "gated_mixture": {"members": 2},
    "hierarchical_mixture": {"depth": 2},
    "specialists": {"combine": "posterior"},
    "random_forest": {"members": 5},
    "hist_gradient_boosting": {"members": 5},
    "sk_bagging": {"members": 5},
    "sk_adaboost": {"members": 5},
}
REFUSED = {
    "adaboost": "a text has a right and a wrong for every byte",
    "gradient_boosting": "a score for every training token",
    "stacking": "a coefficient for every member, byte and predicted byte",
    **dict.fromkeys(
        ("random_forest", "hist_gradient_boosting", "sk_bagging", "sk_adaboost"),
        "trees need an example's numbers and one target",
    ),
}
ON_TEXT_ALONE = {"specialists": "has no domains"}


def spec(arm, name, **options):
    given, backbone = DATA[name]
    made = ArmSpec(arm, backbone, {"count": 4}, {}, {**ARMS[arm], **options})
    return RunSpec(arm, made, 1, {"name": name, **given}, Budget(steps=4), Optimizer(lr=1e-2), TrainerOptions(checks=2))


@cache
def held(name):
    return load(name, **DATA[name][0])


def test_all_are_asked():
    built_in = {name for name in BASELINES.names() if BASELINES.origin(name) == BUILT_IN}
    # A student needs a trained teacher: tests/baselines/test_distilled.py gives it one on every task.
    assert set(ARMS) | {"dense", "distilled"} == built_in


@pytest.mark.parametrize("arm", list(ARMS))
@pytest.mark.parametrize("name", list(DATA))
def test_it_trains_or_says_why_not(name, arm):
    found = held(name)
    refused = (REFUSED if name == "domains" else ON_TEXT_ALONE).get(arm)
    if refused is not None:
        with pytest.raises(UsageError, match=f"arm '{arm}': .*{refused}"):
            execute(spec(arm, name), data=found)
        return
    record = execute(spec(arm, name), data=found).record
    assert record["status"] == "ok", record["error"]
    for split in ("validation", "test"):
        assert math.isfinite(record[split]["loss"])
        assert math.isfinite(record[split][found.task.metric])
    if arm in ("snapshot", "batch_ensemble", "ensemble", "bagging", "specialists"):
        assert record["diversity"]["members"] == 2


@pytest.mark.parametrize("arm", ["snapshot", "stacking", "gated_mixture", "adaboost"])
def test_routed_members_too(arm):
    """Where members may be routed, on a table's regression; a router's losses and counts go with them."""
    record = execute(spec(arm, "flights", base="switch"), data=held("flights")).record
    assert record["status"] == "ok", record["error"]
    assert record["load_cv"] is not None


def test_a_list_of_bases_is_a_grid_and_no_mixture_of_kinds():
    config = resolve([]).config
    found = arm_choices(config, [{"name": "stacking", "base": ["dense", "switch"]}])
    assert [choice.label for choice in found] == ["stacking-base=dense", "stacking-base=switch"]
