"""Learning rates are chosen per arm, on validation, and test is read for the chosen one only."""

import csv

import pytest

from routelab.comparison.compare import compare
from routelab.comparison.learning_rate_selection import choose_rates
from routelab.comparison.train_one import train
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.core.errors import UsageError


def record(arm, rate, seed, loss, status="ok"):
    return {
        "arm": arm, "seed": seed, "status": status, "validation": {"loss": loss} if status == "ok" else {}, "flops_model": 10.0,
        "config": {"optimizer": {"lr": rate}},
    }  # fmt: skip


def test_the_best_mean_wins():
    """0.1: mean 2; 0.2: mean 1.5, the best; 0.4: one seed better than all others, but the mean is 2.5."""
    records = [record("a", rate, seed, loss) for rate, losses in {0.1: (2, 2), 0.2: (1, 2), 0.4: (0.5, 4.5)}.items()
               for seed, loss in enumerate(losses)]  # fmt: skip
    found = choose_rates([*records, record("b", 0.1, 0, 1.0)])
    assert found == {"a": {"rate": 0.2, "validation": {"0.1": 2.0, "0.2": 1.5, "0.4": 2.5}, "edge": False, "flops": 60.0}}


def test_a_rate_that_fails_ranks_behind():
    records = [
        record("a", 0.1, 0, 2.0),
        record("a", 0.1, 1, 2.0),
        record("a", 0.9, 0, 0.1),
        record("a", 0.9, 1, None, "failed"),
    ]
    found = choose_rates(records)["a"]
    assert found["rate"] == 0.1
    assert found["edge"]
    assert found["validation"] == {"0.1": 2.0, "0.9": 0.1}


def test_rates_of_one_arm_and_of_all():
    config = resolve(["optimizer.lr=[0.001,0.01]"]).config
    choices = arm_choices(config, ["dense", {"name": "switch", "optimizer.lr": [0.1, 0.2, 0.3], "capacity_factor": [1.0, 2.0]}])
    assert [(choice.label, choice.rates) for choice in choices] == [
        ("dense", (0.001, 0.01)),
        ("switch-capacity_factor=1.0", (0.1, 0.2, 0.3)),
        ("switch-capacity_factor=2.0", (0.1, 0.2, 0.3)),
    ]


def test_a_reference_outside_the_loop_has_no_rate_to_choose():
    config = resolve(["optimizer.lr=[0.001,0.01]"]).config
    assert [choice.rates for choice in arm_choices(config, ["dense", "random_forest"])] == [(0.001, 0.01), (0.001,)]


@pytest.mark.parametrize("value", ["0", "-1", "[]", "[0.1,0.1]", "[0.1,-1]", "fast", "true"])
def test_wrong_rates(value):
    with pytest.raises(UsageError, match=r"^optimizer\.lr="):
        resolve([f"optimizer.lr={value}"])


@pytest.mark.slow
@pytest.mark.usefixtures("local_training")
def test_compare_trains_all_and_shows_the_best(tmp_path):
    words = [
        f"output={tmp_path}/results/mine", f"tracking.uri=sqlite:///{tmp_path}/results/mlflow.db", "budget.steps=6",
        "trainer.checks=2", "backbone.d_model=16", "backbone.depth=1", "backbone.heads=2", "seeds=2", "arms=[dense]", "workers=1",
    ]  # fmt: skip
    done = compare([*words, "optimizer.lr=[1e-9,3e-3]"])
    # A rate of 1e-9 learns nothing.
    assert done.summary["tuned"]["dense"]["rate"] == 3e-3
    assert [r["config"]["optimizer"]["lr"] for r in done.records] == [3e-3, 3e-3]
    assert len(list(csv.reader((tmp_path / "results/mine/results.csv").open()))) == 3
    alone = compare([*words, "optimizer.lr=3e-3"])
    assert alone.reused == 2
    assert alone.records[0]["test"] == done.records[0]["test"]
    with pytest.raises(UsageError, match="one rate for train"):
        train([*words, "arm=dense", "optimizer.lr=[1e-9,3e-3]"])
