"""Places on the dense frontier, from records whose law is known, and the words that verdicts are made of."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from routelab.comparison.frontier import frontier_of, to_target
from routelab.comparison.grid import Row
from routelab.comparison.matching import Matched
from routelab.comparison.summary import summarise
from routelab.config.run_options import Budget
from routelab.core.number_format import format_change_size


def law(flops):
    return 1.0 + 2.0 * (flops / 1e9) ** -0.3


SIZES = {0.25: 1e9, 0.5: 2e9, 1.0: 4e9, 2.0: 8e9, 4.0: 16e9}


def world(gain=2.0, seeds=6, shares=(1.0,), loss=None, noise=0.002):
    """A dense ladder on a power law, and an arm that needs `gain` times fewer FLOPs (or has one loss whatever it spends)."""
    rows, records = [], []
    for share in shares:
        for arm in ("dense", "mix"):
            for size, flops in SIZES.items() if arm == "dense" else [(1.0, 4e9)]:
                label = f"{arm}@{size:g} b{share:g}" if (size, share) != (1.0, 1.0) else arm
                rows.append(Row(label, Matched(None, None, None, 0, 0, True), arm, Budget(steps=1), size, share))
                for seed in range(seeds):
                    rng = np.random.default_rng([seed, len(rows)])
                    spent = flops * share
                    value = law(spent * (gain if arm == "mix" else 1.0)) if loss is None or arm == "dense" else loss
                    value += 0.01 * math.sin(seed) + rng.normal(0, noise)
                    records.append(
                        {"arm": label, "seed": seed, "status": "ok", "flops_model": spent, "data": "d", "metric": "accuracy",
                         "test": {"loss": value, "accuracy": 0.5}, "validation": {"loss": value}, "seconds": 10.0 * size,
                         "total_params": int(1e6 * size), "flops_per_example": flops,
                         "curve": [{"flops": spent * part, "seconds": 10 * part, "val/loss": value + 1 - part} for part in (.25, .5, 1.)]}
                    )  # fmt: skip
    return rows, records


def test_leverage_at_the_arms_own_loss():
    found = frontier_of(*reversed(world()), "dense")
    own = found["arms"]["mix"]["own"]
    assert own["bound"] == "="
    assert own["mean"] == pytest.approx(2.0, rel=0.05)
    assert own["low"] < own["mean"] < own["high"] < 2.3
    assert len(found["points"]) == 5
    assert found["arms"]["mix"]["at"] == []
    assert found["arms"]["mix"]["effective_size"] == {"params": pytest.approx(2e6, rel=0.05), "bound": "="}


def test_leverage_at_three_losses_with_several_budgets():
    found = frontier_of(*reversed(world(shares=(1.0, 0.5, 0.25))), "dense")["arms"]["mix"]
    assert len(found["at"]) == 3
    for each in found["at"]:
        assert each["mean"] == pytest.approx(2.0, rel=0.05)
    assert found["mean"]["mean"] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(("loss", "bound"), [(1.0, ">"), (5.0, "<")])
def test_a_loss_beyond_the_ladder_is_censored(loss, bound):
    rows, records = world(loss=loss)
    own = frontier_of(records, rows, "dense")["arms"]["mix"]["own"]
    assert own["bound"] == bound
    assert math.isnan(own["low"])
    assert own["mean"] == pytest.approx(4.0 if bound == ">" else 0.25)


def test_without_a_ladder_there_is_no_frontier():
    rows, records = world()
    assert frontier_of(records, [row for row in rows if row.size == 1.0], "dense") is None
    assert frontier_of(records, rows, None) is None


def test_to_target_is_paired_by_seed():
    _, records = world(noise=0.0, seeds=3)
    found = to_target(records, "dense", "mix")
    assert (found["reached"], found["seeds"]) == (3, 3)
    assert found["flops"]["mean"] < 1
    assert found["flops"]["mean"] == pytest.approx(found["seconds"]["mean"], rel=1e-6)


def test_the_cost_of_the_references_loss_is_no_mean_over_the_seeds_that_reached_it():
    worse = to_target(world(loss=3.0)[1], "dense", "mix")
    assert (worse["reached"], worse["seeds"], worse["flops"], worse["seconds"]) == (0, 6, None, None)
    late = [
        {**each, "curve": [{**point, "val/loss": 9.0} for point in each["curve"]]}
        if (each["arm"], each["seed"]) == ("mix", 2)
        else each
        for each in world(noise=0.0, seeds=3)[1]
    ]
    partly = to_target(late, "dense", "mix")
    assert (partly["reached"], partly["seeds"], partly["flops"], partly["seconds"]) == (2, 3, None, None)


def test_a_reference_without_a_curve_did_not_fail_to_reach_anything():
    records = [{**each, "curve": []} if each["arm"] == "mix" else each for each in world()[1]]
    assert to_target(records, "dense", "mix") is None


def test_what_an_arm_builds_on_counts_in_its_leverage():
    """It spent 4e9 FLOPs after a run of as many: half the leverage, and the report says that they are counted."""
    rows, records = world()
    built = [{**each, "initial_flops": each["flops_model"]} if each["arm"] == "mix" else each for each in records]
    alone, whole = (frontier_of(found, rows, "dense")["arms"]["mix"]["own"] for found in (records, built))
    assert whole["mean"] == pytest.approx(alone["mean"] / 2)
    made = summarise("m", built, ["dense", "mix"], "dense", frontier=frontier_of(built, rows, "dense"))
    assert "its training FLOPs (earlier runs' FLOPs included)" in made["arms"]["mix"]["verdict"]


@pytest.mark.parametrize("budget", [Budget(flops=1e9), Budget(seconds=3)])
def test_a_dense_size_is_given_only_at_equal_data(budget):
    rows, records = world()
    unequal = [replace(row, budget=budget) for row in rows]
    assert frontier_of(records, unequal, "dense")["arms"]["mix"]["effective_size"] is None
    rows = [replace(row, budget=Budget(steps=2)) if row.arm == "mix" else row for row in rows]
    assert frontier_of(records, rows, "dense")["arms"]["mix"]["effective_size"] is None


def verdict(**more):
    rows, records = world(**more)
    made = summarise("m", records, ["dense", "mix"], "dense", frontier=frontier_of(records, rows, "dense"))
    json.dumps(made)
    return made["arms"]["mix"]


def test_verdict_in_words():
    entry = verdict()
    assert entry["state"] == "better"
    assert entry["verdict"].startswith("better: test loss -")
    assert "which dense models reach with 2." in entry["verdict"] or "which dense models reach with 1.9" in entry["verdict"]
    assert "6 seeds, on this test split, Holm p=" in entry["verdict"]
    assert entry["verdict"].endswith("equal training time within 5% [1.00, 1.00]")
    assert "a loss that no dense model of the ladder reaches (leverage above 4)" in verdict(loss=1.0)["verdict"]
    assert "the cheapest dense model of the ladder undercuts (leverage below 0.25)" in verdict(loss=5.0)["verdict"]


def test_verdict_of_equals_and_of_too_few_seeds():
    same = verdict(gain=1.0, noise=0.0005)
    assert same["state"] == "equivalent"
    assert "equivalent: test loss" in same["verdict"]
    assert "equivalence p=" in same["verdict"]
    unsure = verdict(gain=1.05, noise=0.03, seeds=3)
    assert unsure["state"] == "open"
    assert "seeds_needed" not in unsure, "no number of seeds is suggested"
    low, high = abs(unsure["difference"]["low"]), abs(unsure["difference"]["high"])
    assert unsure["supported_margin"] <= max(low, high)
    assert unsure["verdict"].endswith(
        f"the smallest margin of equivalence that these data support is {format_change_size(unsure['supported_margin'])}"
    )
