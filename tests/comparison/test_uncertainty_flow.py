"""Comparisons over seeds and test units from end to end, on pretended runs: seeds=auto, more seeds, divergence, missing units."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pretended_runs import World

from routelab.comparison import compare as module
from routelab.comparison import comparison_runner
from routelab.comparison.compare import compare
from routelab.records.unit_file import read_units, write_units
from routelab.report.interval_labels import intervals_of


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that compares in a world, and returns the summary."""
    monkeypatch.setattr(module, "inference", lambda *given: {})

    def compare_in(world, *overrides):
        monkeypatch.setattr(comparison_runner, "run_jobs", world.run_jobs)
        given = [f"output={tmp_path}/results/mine", "tracking.uri=null", "budget.steps=40", "backbone.d_model=16",
                 "backbone.depth=1", "backbone.heads=2", "experts.count=4", "arms=[dense,switch]"]  # fmt: skip
        return compare([*given, *overrides]).summary

    return compare_in


def seeds_of(world, label):
    return sorted(seed for arm, seed in world.trained if arm == label)


def test_both_standard_errors_are_in_the_summary_and_their_root_sum_is_near_the_standard_error(run):
    entry = run(World(gain={"switch": 0.1}), "seeds=4")["arms"]["switch"]
    difference = entry["difference"]
    assert (difference["n"], difference["units"], entry["covered"]) == (4, 60, ["seeds", "examples"])
    parts = np.hypot(difference["seed_error"], difference["unit_error"])
    assert max(difference["seed_error"], difference["unit_error"]) <= difference["standard_error"] <= parts
    assert "4 seeds x 60 documents" in entry["verdict"]


def test_seeds_auto_stops_where_the_test_set_is_the_limit(run):
    world = World(gain={"switch": 0.05}, seed_sd=0.002, unit_sd=0.5)
    outcome = run(world, "seeds=auto")
    # With five seeds no interval at half of the level is bounded.
    assert seeds_of(world, "switch") == list(range(6)), "more seeds cannot help"
    assert outcome["arms"]["switch"]["limited"]
    assert outcome["arms"]["switch"]["verdict"].startswith("undecided, limited by the test set:")


def test_seeds_auto_adds_seeds_if_seeds_are_the_limit(run):
    world = World(gain={"switch": 0.2}, seed_sd=0.2, unit_sd=0.01)
    outcome = run(world, "seeds=auto", "statistics.max_seeds=40")
    assert len(seeds_of(world, "switch")) > 5
    assert outcome["arms"]["switch"]["state"] == "worse"
    assert outcome["sequential"] is True
    assert not outcome["arms"]["switch"]["limited"]


def test_seeds_auto_without_units_adds_seeds_although_units_would_be_the_limit(run):
    world = World(gain={"switch": 0.05}, seed_sd=0.05, unit_sd=0.5)
    outcome = run(world, "seeds=auto", "statistics.uncertainty=[seeds]", "statistics.max_seeds=8")
    assert "on this test split" in outcome["arms"]["switch"]["verdict"]
    assert not outcome["arms"]["switch"]["limited"]


def test_no_seeds_are_added_for_an_arm_that_diverged(run):
    world = World(gain={"switch": 0.2, "top2": 0.2}, seed_sd=0.2, unit_sd=0.01, diverged=(("top2", 1),))
    outcome = run(world, "arms=[dense,switch,top2]", "seeds=auto", "statistics.max_seeds=9")
    assert seeds_of(world, "top2") == list(range(5))
    assert len(seeds_of(world, "switch")) > 5
    assert outcome["arms"]["top2"]["state"] == "withheld"
    assert outcome["arms"]["top2"]["verdict"].startswith("no verdict, as 1 of 5 seeds diverged; over 4 seeds")


def test_a_fixed_comparison_with_more_seeds_goes_on_sequentially_and_withdraws(run, tmp_path):
    world = World(gain={"switch": 0.5}, unit_sd=0.05)
    first = run(world, "seeds=3")
    assert first["arms"]["switch"]["state"] == "worse"
    assert (first["sequential"], first["withdrawal"], first["looks"]) == (False, None, [3])
    same = run(world, "seeds=3")
    assert (same["sequential"], same["withdrawal"]) == (False, None), "the same seeds again are no further look"
    more = run(world, "seeds=6")
    assert more["sequential"] is True
    assert more["looks"] == [3, 6]
    assert more["withdrawal"].startswith("This comparison was judged with 3 and 6 seeds. It is therefore judged sequentially.")
    assert "(switch worse)" in more["withdrawal"]
    assert "p_holm" not in more["arms"]["switch"] or more["arms"]["switch"]["p_holm"] is None
    again = run(world, "seeds=6")
    assert again["sequential"] is True, "once looked at twice, always sequential"
    assert again["withdrawal"] == more["withdrawal"]
    # With other runs it is another comparison.
    other = run(world, "seeds=6", "optimizer.lr=0.0007")
    assert other["sequential"] is False
    assert json.loads((tmp_path / "results/mine/summary.json").read_text())["looks"] == [6]


def test_seeds_auto_goes_on_from_a_fixed_comparison(run):
    world = World(gain={"switch": 0.5}, unit_sd=0.05)
    run(world, "seeds=2")
    outcome = run(world, "seeds=auto")
    assert outcome["looks"][0] == 2
    assert outcome["sequential"] is True
    assert outcome["withdrawal"] is not None


def test_runs_without_units_are_judged_over_seeds_and_it_says_so(run):
    outcome = run(World(gain={"switch": 0.5}, with_units=False), "seeds=4")
    assert outcome["unit"] is None
    assert outcome["arms"]["switch"]["covered"] == ["seeds"]
    assert "No test units were recorded, so intervals cover training seeds only" in outcome["caveat"]


def test_a_run_without_its_unit_table_is_trained_again(run, tmp_path):
    world = World(gain={"switch": 0.5})
    run(world, "seeds=2")
    for path in (tmp_path / "results/cells").iterdir():
        (path / "units.parquet").unlink()
        break
    run(world, "seeds=2")
    assert len(world.trained) == 5, "one of four runs was damaged"
    shutil.rmtree(tmp_path / "results/cells")
    run(world, "seeds=2")
    assert len(world.trained) == 9


def test_arms_that_do_not_depend_on_the_seed_are_judged_over_units_alone(run):
    world = World(gain={"switch": 0.5}, constant=("dense", "switch"))
    outcome = run(world, "seeds=3")
    entry = outcome["arms"]["switch"]
    assert entry["covered"] == ["examples"]
    assert "60 documents alone, as the results of neither arm differ between seeds" in entry["verdict"]
    one = run(World(gain={"switch": 0.5}, constant=("switch",)), "seeds=3", "optimizer.lr=0.0007")["arms"]["switch"]
    assert one["covered"] == ["seeds", "examples"]


def test_domains_and_pairs_have_both_standard_errors(run):
    outcome = run(World(), "seeds=3", "arms=[dense,switch,top2]", "statistics.pairs=[[switch,top2]]")
    for difference in (outcome["arms"]["switch"]["by_domain"]["a"]["difference"], outcome["pairs"][0]["difference"]):
        assert difference["seed_error"] > 0
        assert difference["unit_error"] > 0
    assert outcome["arms"]["switch"]["by_domain"]["a"]["difference"]["units"] == 30
    assert outcome["pairs"][0]["difference"]["units"] == 60


def test_intervals_over_units_alone_do_not_claim_to_hold_at_every_analysis(run):
    world = World(gain={"switch": 0.5})
    run(world, "seeds=3", "statistics.uncertainty=[examples]")
    made = run(world, "seeds=4", "statistics.uncertainty=[examples]")
    assert (
        made["withdrawal"]
        == "This comparison was judged with 3 and 4 seeds. The verdicts at 3 seeds are withdrawn (switch worse)."
    )
    assert "sequential" not in made["sentence"]
    assert made["arms"]["switch"]["state"] == "withheld"
    assert made["arms"]["switch"]["verdict"].startswith("no verdict, as results were seen with other seeds; over 4 seeds:")
    assert "hold at every interim analysis" not in intervals_of(made)
    assert "hold at every interim analysis" in intervals_of(run(world, "seeds=4"))


def test_arms_with_the_same_settings_share_runs_and_are_equivalent(run):
    world = World(seed_sd=0.1)
    arms = "arms=[dense,{name: random_forest, label: one},{name: random_forest, label: two}]"
    made = run(world, "seeds=3", arms, "match.reference=one")
    assert len(world.trained) == 6
    assert [(arm["n"], arm["failed"]) for arm in made["arms"].values()] == [(3, 0)] * 3
    assert made["arms"]["two"]["difference"]["mean"] == 0.0
    assert made["arms"]["two"]["state"] == "equivalent"


def test_the_units_of_another_run_are_not_judged(run, tmp_path):
    """A process that dies between writing its units and its record leaves such a file, if runs are not the same to the bit."""
    world = World(gain={"switch": 0.5})
    first = run(world, "seeds=2")["arms"]["switch"]
    path = next(
        folder / "units.parquet"
        for folder in (tmp_path / "results/cells").iterdir()
        if json.loads((folder / "record.json").read_text())["arm"] == "switch"
    )
    units = read_units(path)
    write_units(path, replace(units, sums=units.sums | {"loss": 3 * units.sums["loss"]}))
    again = run(world, "seeds=2")["arms"]["switch"]
    assert len(world.trained) == 5
    assert again["difference"] == first["difference"]


def test_a_damaged_summary_does_not_stop_a_comparison(run, tmp_path):
    world = World(gain={"switch": 0.5}, unit_sd=0.05)
    run(world, "seeds=3")
    path = tmp_path / "results/mine/summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"looks": 3, "withdrawn": "x", "arms": [], "seeds": None}))
    made = run(world, "seeds=6")
    assert (made["sequential"], made["looks"], made["first_look"]) == (True, [3, 6], 3)


def test_as_many_other_seeds_are_judged_sequentially(run):
    world = World(gain={"switch": 0.5}, unit_sd=0.05)
    run(world, "seeds=[0,1,2]")
    made = run(world, "seeds=[0,1,7]")
    assert made["sequential"] is True
    assert made["withdrawal"] == (
        "This comparison was judged with other seeds. It is therefore judged sequentially. The verdicts at 3 seeds are withdrawn "
        "(switch worse)."
    )


def test_other_seeds_after_a_look_get_no_verdict(run):
    """Otherwise one could draw seeds until the result pleases."""
    world = World(gain={"switch": 0.5}, unit_sd=0.05)
    assert run(world, "seeds=[0,1,2]")["arms"]["switch"]["state"] == "worse"
    fresh = run(world, "seeds=[3,4,5]")
    assert fresh["sequential"] is True
    assert fresh["judged_seeds"] == [0, 1, 2, 3, 4, 5]
    assert fresh["arms"]["switch"]["state"] == "withheld"
    assert fresh["arms"]["switch"]["verdict"].startswith("no verdict, as results were seen with other seeds; over 3 seeds:")
    everything = run(world, "seeds=[0,1,2,3,4,5]")
    assert everything["arms"]["switch"]["state"] == "worse"
    assert run(world, "seeds=5")["arms"]["switch"]["state"] == "withheld", "seed 5 is left out"


def test_seeds_auto_takes_up_all_seeds_that_were_judged(run):
    world = World(gain={"switch": 0.5}, unit_sd=0.05)
    run(world, "seeds=9")
    outcome = run(world, "seeds=auto")
    assert outcome["seeds"] == list(range(9))
    assert len(world.trained) == 18
    assert outcome["arms"]["switch"]["state"] == "worse"


def test_arms_that_are_left_out_after_a_look_stay_in_the_family(run):
    world = World(gain={"switch": 0.3}, unit_sd=0.3)
    p_holm = run(world, "seeds=3", "arms=[dense,switch,top2,hash]")["arms"]["switch"]["p_holm"]
    again = run(world, "seeds=3", "arms=[dense,switch]")
    assert again["family"] == ["hash", "switch", "top2"]
    assert again["arms"]["switch"]["p_holm"] == pytest.approx(3 * again["arms"]["switch"]["p_t"])
    assert again["arms"]["switch"]["p_holm"] >= p_holm
    alone = run(world, "seeds=3", "arms=[dense,switch]", "optimizer.lr=0.0007")
    assert alone["arms"]["switch"]["p_holm"] == alone["arms"]["switch"]["p_t"]


def test_an_arm_that_failed_on_every_seed_counts_in_the_family(run):
    world = World(gain={"switch": 0.3}, diverged=tuple(("top2", seed) for seed in range(3)))
    outcome = run(world, "seeds=3", "arms=[dense,switch,top2]")
    assert outcome["arms"]["switch"]["p_holm"] == pytest.approx(min(1.0, 2 * outcome["arms"]["switch"]["p_t"]))


def test_learning_rates_are_chosen_at_the_first_analysis(run):
    """A rate that is best on the first seeds stays, whatever later seeds say: another rate would be another arm."""
    world = World(seed_sd=0.1, validation={0.001: [1.0, 1.0, 9.0, 9.0], 0.002: [2.0, 2.0, 2.0, 2.0]})
    first = run(world, "seeds=2", "optimizer.lr=[0.001,0.002]")
    assert first["tuned"]["switch"]["rate"] == 0.001
    more = run(world, "seeds=4", "optimizer.lr=[0.001,0.002]")
    assert more["tuned"]["switch"]["rate"] == 0.001
    fresh = run(world, "seeds=[2,3]", "optimizer.lr=[0.001,0.002]", "budget.steps=41")
    assert fresh["tuned"]["switch"]["rate"] == 0.002
