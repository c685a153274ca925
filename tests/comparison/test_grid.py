"""What a comparison trains: ladders, budgets, IsoFLOP grids, and seeds that are added while a verdict is open."""

import csv
import math

import numpy as np
import pytest

from routelab.comparison import compare as module
from routelab.comparison import comparison_runner
from routelab.comparison.compare import carry_out
from routelab.comparison.estimate import outlook
from routelab.comparison.execute import Event
from routelab.comparison.prepared_comparison import plan
from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.experts.feed_forward import FeedForward


def planned(folder, *words):
    return plan(
        resolve([f"output={folder}/results/mine", "tracking.uri=null", "budget.steps=40", "backbone.d_model=16", "backbone.depth=1",
                 "backbone.heads=2", "seeds=2", "arms=[dense,switch]", "workers=1", "experts.count=4", *words])
    )  # fmt: skip


def widths(ready):
    import routelab.baselines.base

    found = {}
    for row in ready.rows:
        arm = routelab.baselines.build.make_arm(row.matched.choice.spec, ready.data.task, 0, sizing=True)
        found[row.label] = next((m.d_hidden for m in arm.modules() if isinstance(m, FeedForward)), None)
    return found


def test_without_ladders_the_rows_are_the_arms(tmp_path):
    ready = planned(tmp_path)
    assert [row.label for row in ready.rows] == ready.labels == ["dense", "switch"]
    assert len(ready.jobs) == 4


def test_dense_ladder(tmp_path):
    ready = planned(tmp_path, "dense_ladder=[0.25,1,4]")
    assert [row.label for row in ready.rows] == ["dense", "switch", "dense@0.25", "dense@4"]
    assert ready.labels == ["dense", "switch"]
    assert widths(ready) == {"dense": 64, "switch": None, "dense@0.25": 16, "dense@4": 256}
    assert {row.budget.steps for row in ready.rows} == {40}


def test_budget_ladder(tmp_path):
    ready = planned(tmp_path, "dense_ladder=[0.5]", "budget_ladder=[0.25,1]")
    steps = {row.label: row.budget.steps for row in ready.rows}
    assert steps == {"dense": 40, "switch": 40, "dense@0.5": 40, "dense b0.25": 10, "switch b0.25": 10, "dense@0.5 b0.25": 10}
    assert len({job.key for job in ready.jobs}) == 12


def test_dense_budgets_are_of_the_dense_models_alone(tmp_path):
    rows = planned(tmp_path, "dense_ladder=[0.5,1]", "dense_budgets=[0.5,2]", "budget_ladder=[0.25]").rows
    shares = {(row.arm, row.size): [] for row in rows}
    for row in rows:
        shares[row.arm, row.size].append(row.share)
    assert shares[("dense", 1.0)] == shares[("dense", 0.5)] == [1.0, 0.25, 0.5, 2.0]
    assert all(found == [1.0, 0.25] for (arm, _), found in shares.items() if arm != "dense")
    assert len(shares) > 2


def test_isoflop_grid_spends_the_same_at_every_size(tmp_path):
    ready = planned(tmp_path, "isoflop=true", "dense_ladder=[0.5,1,2]", "budget_ladder=[0.5,1]")
    assert len(ready.rows) == 2 * 3 * 2
    dense = next(row for row in ready.rows if row.label == "dense")
    whole = dense.matched.train_flops_per_example * 40 * 64
    assert {row.budget.flops for row in ready.rows} == {whole, whole / 2}
    by_label = {row.label: row.matched.flops_per_example for row in ready.rows}
    for size in ("@0.5", "@2"):
        assert by_label[f"switch{size}"] == pytest.approx(by_label[f"dense{size}"], rel=0.02)
    assert by_label["dense@2"] > 1.2 * by_label["dense"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["arms=[switch]", "dense_ladder=[0.5]"], r"dense_ladder=\[0.5\] needs the reference 'dense' among the arms"),
        (["match.reference=switch", "dense_ladder=[0.5]"], "dense_ladder needs a dense reference; match.reference is 'switch'"),
        (["isoflop=true", "budget.seconds=3"], "isoflop needs a budget in flops, steps or epochs; budget.seconds=3.0 has no FLOPs"),
        (["dense_ladder=[0.5,-1]"], r"dense_ladder\[1\]=-1.0 must be above 0"),
        (["budget_ladder=[0]"], r"budget_ladder\[0\]=0.0 must be above 0"),
        (["arms=[dense,{name: dense, label: dense@2, backbone.hidden: 65}]", "dense_ladder=[2]"], "two rows are labelled 'dense@2'"),
        (["statistics.min_seeds=1"], "statistics.min_seeds=1 must be at least 2"),
        (["statistics.alpha=5"], "statistics.alpha=5.0 must lie between 0 and 1"),
        (["arms=[switch]", "seeds=auto"], "seeds=auto needs the reference 'dense' among the arms"),
        (["seeds=many"], "seeds='many' must be a number, a list of whole numbers, or auto"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_one_sentence(words, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        planned(tmp_path, *words)


def test_outlook(tmp_path):
    found = outlook(planned(tmp_path, "seeds=5"))
    assert found.runs == 10
    dense = planned(tmp_path).rows[0].matched
    assert found.flops == pytest.approx(10 * dense.train_flops_per_example * 40 * 64, rel=0.02)
    assert found.seconds > 0
    assert found.effect == pytest.approx(1.68, abs=0.01)  # G*Power: n = 5, two-sided .05, power .8
    assert found.uncounted == 0
    assert outlook(planned(tmp_path, "seeds=1")).effect is None
    # Members that train one after another, and a reference whose FLOPs nobody counts.
    staged = outlook(planned(tmp_path, "arms=[dense,gradient_boosting,bagging,random_forest]", "match.on=none", "seeds=1"))
    assert (staged.runs, staged.uncounted) == (4, 1)
    assert staged.seconds > 0
    assert outlook(planned(tmp_path, "budget.seconds=3", "seeds=2")).seconds == pytest.approx(12)


def pretended(gains, spread=0.02):
    """`run_jobs` without training: log loss = that of the seed + the arm's gain + a little noise."""

    def run(jobs, workers):
        for job in jobs:
            rng = np.random.default_rng([job.spec.seed, *job.spec.label.encode()])
            loss = math.exp(0.1 * job.spec.seed % 7 + gains.get(job.spec.label, 0.0) + rng.normal(0, spread))
            record = {
                "arm": job.spec.label, "seed": job.spec.seed, "data": "digits", "metric": "accuracy", "status": "ok", "seconds": 1.0,
                "test": {"loss": loss, "accuracy": 0.5}, "validation": {"loss": loss}, "config": job.spec.plain(), "curve": [],
                "flops_model": 1e9, "total_params": 1000, "flops_per_example": 1e6, "provenance": {"cell": job.key},
            }  # fmt: skip
            yield Event(job, 1.0, record=record)

    return run


def test_seeds_are_added_only_where_the_verdict_is_open(tmp_path, monkeypatch):
    gains = {"switch": -0.5, "soft": 0.0, "top2": 0.03, "hash": 0.4}
    monkeypatch.setattr(comparison_runner, "run_jobs", pretended(gains))
    ready = planned(
        tmp_path, "seeds=auto", "arms=[dense,switch,soft,top2,hash]", "statistics.max_seeds=14", "statistics.min_seeds=3"
    )
    done = carry_out(ready)
    seeds = {label: done.summary["arms"][label]["n"] for label in ready.labels}
    states = {label: done.summary["arms"][label]["state"] for label in ready.labels}
    assert states["switch"] == "better"
    assert states["hash"] == "worse"
    assert seeds["switch"] < seeds["dense"], "settled, it was left alone"
    assert seeds["dense"] == max(seeds.values()) <= 14
    assert "sequential paired t-tests" in done.summary["sentence"]
    # Cells are cached by seed: the same call again trains nothing. The pretended ones were not written, so count the rows.
    rows = list(csv.DictReader((tmp_path / "results/mine/results.csv").open()))
    assert len(rows) == sum(seeds.values())


def test_seeds_are_added_where_a_pair_is_open_though_both_of_its_arms_are_settled(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_runner, "run_jobs", pretended({"switch": -2.0, "top2": -2.001, "hash": 2.0}, spread=0.005))
    words = (
        "seeds=auto",
        "arms=[dense,switch,top2,hash]",
        "statistics.min_seeds=5",
        "statistics.max_seeds=8",
        "statistics.pairs=[[switch,top2]]",
    )
    done = carry_out(planned(tmp_path, *words))
    seeds = {label: arm["n"] for label, arm in done.summary["arms"].items()}
    assert seeds["switch"] == seeds["top2"] == seeds["dense"] > 5
    assert seeds["hash"] < seeds["switch"]
    assert done.summary["pairs"][0]["difference"]["n"] == seeds["switch"]


def test_a_comparison_that_breaks_does_not_look_alive(tmp_path, monkeypatch):
    ended = []

    class Store(module.Tracker):
        def finish(self, run_id, status="FINISHED", ended_at=None):
            ended.append(status)

    def broken(*given):
        raise RuntimeError("no idea")

    monkeypatch.setattr(module, "Tracker", Store)
    monkeypatch.setattr(comparison_runner, "run_jobs", pretended({}))
    monkeypatch.setattr(module, "inference", broken)
    with pytest.raises(RuntimeError, match="no idea"):
        carry_out(planned(tmp_path))
    assert ended == ["FAILED"]


def test_no_seed_is_added_once_everything_is_settled(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_runner, "run_jobs", pretended({"switch": -2.0}, spread=0.001))
    done = carry_out(planned(tmp_path, "seeds=auto", "statistics.min_seeds=6"))
    assert done.summary["arms"]["switch"]["n"] == 6
