"""Comparisons of runs that build on other runs: found by name, paired by seed, charged, and read in two ways."""

import csv
import json
from pathlib import Path

import pytest
import torch

from routelab.cli.app import app, guarded
from routelab.comparison.budget_accounting import readings_of, readings_sentence
from routelab.comparison.compare import compare
from routelab.comparison.distillation import ALONE, EQUAL_STEPS, distillation
from routelab.comparison.prepared_comparison import plan
from routelab.comparison.replay import replay
from routelab.comparison.train_one import train
from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.records.run_lookup import find_record

pytestmark = pytest.mark.slow  # Every test looks at trained runs; those that compare start processes.
SMALL = ("backbone.d_model=16", "backbone.depth=1", "backbone.heads=2", "backbone.hidden=32", "experts.count=4")


def words(folder, name, *more):
    return [
        f"output={folder}/results/{name}", f"tracking.uri=sqlite:///{folder}/results/mlflow.db", "trainer.checks=2",
        "trainer.batch_size=16", "workers=1", "match.on=none", *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Runs of dense and topk with two seeds, in results/first; the folder above."""
    folder = tmp_path_factory.mktemp("runs")
    for arm in ("dense", "topk"):
        for seed in (0, 1):
            run = train(words(folder, "first", f"arm={arm}", f"seed={seed}", "budget.flops=3e7", "tracking.uri=null"))
            assert run.record["status"] == "ok"
    return folder


def arms_of(first):
    run = f"{first}/results/first/dense-s{{seed}}"
    return {
        "arms": [
            {"name": "topk", "label": "upcycled", "init.from": run},
            {"name": "dense", "label": "on", "init.from": run},
            {"name": "topk", "label": "scratch"},
            {"name": "topk", "label": "scratch-total", "init.from": run, "init.take": "flops"},
            {"name": "dense", "label": "half", "budget.times": 0.5},
        ],
        "match": {"on": "none", "reference": "upcycled"}, "budget": {"flops": 2e7}, "seeds": 2,
    }  # fmt: skip


def configured(first, name, **changes):
    merged = {**resolved_dict(words(first, name, "tracking.uri=null")), **arms_of(first), **changes}
    return {**merged, "experts": {"count": 4}, "backbone": {"d_model": 16, "depth": 1, "heads": 2, "hidden": 32}}


def resolved_dict(given):
    config = resolve([word for word in given if not word.startswith(("backbone", "experts"))]).config
    return {"output": config.output, "workers": 1, "trainer": {"checks": 2, "batch_size": 16}, "tracking": {"uri": None}}


@pytest.mark.long
def test_both_readings_of_upcycling(first):
    done = compare(configured(first, "upcycle"))
    assert not done.failed
    by = {(record["arm"], record["seed"]): record for record in done.records}
    sunk = {seed: find_record(f"{first}/results/first/dense-s{seed}", None)["flops_model"] for seed in (0, 1)}
    for seed in (0, 1):
        for arm in ("upcycled", "on"):
            assert by[arm, seed]["initial_flops"] == sunk[seed]
        assert by["scratch", seed]["initial_flops"] is None
        assert by["scratch-total", seed]["initial_flops"] is None
        spent = by["scratch-total", seed]["config"]["budget"]["flops"]
        assert spent == 2e7 + sunk[seed]
        assert 0 <= by["scratch-total", seed]["flops_model"] - spent < 1e6
        assert by["half", seed]["config"]["budget"]["flops"] == 1e7
    assert by["upcycled", 0]["config"]["init"]["digest"] != by["upcycled", 1]["config"]["init"]["digest"]
    ratios = {label: arm["training_ratio"] for label, arm in done.summary["arms"].items() if label != "upcycled"}
    assert ratios["on"]["additional"] == pytest.approx(1, abs=0.025)
    assert ratios["on"]["total"] == pytest.approx(1, abs=0.025)
    assert ratios["scratch"]["additional"] == pytest.approx(1, abs=0.025)
    assert ratios["scratch-total"]["total"] == pytest.approx(1, abs=0.025)
    assert "at equal additional training FLOPs (what earlier runs took is sunk): on (" in done.summary["sentence"]
    assert "at neither: half (0." in done.summary["sentence"]
    header, *rows = csv.reader((done.output / "results.csv").read_text().splitlines())
    assert header[-1] == "initial_flops"
    assert [float(row[-1]) if row[-1] else None for row in rows if row[0] == "upcycled"] == [sunk[0], sunk[1]]
    # Its runs have names, for whatever builds on them.
    named = find_record(f"{first}/results/upcycle/scratch-s1", None, first / "results")
    assert (named["arm"], named["seed"]) == ("scratch", 1)
    with pytest.raises(UsageError, match=r"did you mean 'half-s1'\? \(allowed: half-s0, half-s1, on-s0"):
        find_record(f"{first}/results/upcycle/half-s11", None, first / "results")
    # The same call again trains nothing, and one of its runs is replayed to the bit.
    again = compare(configured(first, "upcycle"))
    assert again.reused == len(done.records)
    assert replay(by["upcycled", 1]).difference is None


def test_a_run_goes_on_from_one_that_went_on(first):
    run = f"{first}/results/first/dense-s0"
    one = train(words(first, "on", "arm=dense", f"init.from={run}", "budget.steps=2", "tracking.uri=null"))
    two = train(words(first, "on-on", "arm=dense", f"init.from={one.record['folder']}", "budget.steps=2", "tracking.uri=null"))
    whole = find_record(run, None)["flops_model"] + one.record["flops_model"]
    assert two.record["initial_flops"] == whole


def test_readings_by_hand():
    arms = {
        "up": {"flops_model": 2.0, "initial_flops": 6.0, "state": None},
        "on": {"flops_model": 2.0, "initial_flops": 6.0, "state": "worse"},
        "new": {"flops_model": 2.0, "initial_flops": None, "state": "worse"},
        "long": {"flops_model": 8.0, "initial_flops": None, "state": "open"},
        "odd": {"flops_model": 4.0, "initial_flops": None, "state": "better"},
    }
    found = readings_of(arms, "up")
    assert found["new"] == {"additional": 1.0, "total": 0.25}
    assert found["long"] == {"additional": 4.0, "total": 1.0}
    assert readings_sentence(arms, "up", found) == (
        " Beside up, at equal additional training FLOPs (what earlier runs took is sunk): on (worse), new (worse); at equal total "
        "training FLOPs (earlier runs' counted): on (worse), long (undecided); at neither: odd (2.00x additional, 0.50x total)."
    )
    assert readings_of({"up": arms["new"], "on": arms["new"]}, "up") == {}


@pytest.mark.long
def test_distil_compares_at_equal_flops_and_at_equal_steps(first, capsys, monkeypatch):
    monkeypatch.chdir(first)
    run = "results/first/topk-s{seed}"
    code = guarded(
        lambda: app(
            ["distil", run, "seeds=2", "budget.steps=20", "workers=1", "tracking.uri=null", "trainer.checks=2", "--json"],
            standalone_mode=False,
        )
    )
    assert code == 0
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["arms"]) == [ALONE, "distilled", EQUAL_STEPS]
    assert summary["reference"] == ALONE
    assert [(pair["arm"], pair["against"]) for pair in summary["pairs"]] == [("distilled", EQUAL_STEPS)]
    records = {
        (arm, seed): json.loads((first / "results/cells" / cell / "record.json").read_text())
        for arm, seed, cell in summary["cells"]
    }
    teacher = find_record("results/first/topk-s1", None)
    for seed in (0, 1):
        assert records["distilled", seed]["steps"] == records[EQUAL_STEPS, seed]["steps"] == 20
        assert records["distilled", seed]["flops_model"] == pytest.approx(records[ALONE, seed]["flops_model"], rel=0.06)
        assert records[ALONE, seed]["steps"] > 20
        assert records[ALONE, seed]["active_params"] == pytest.approx(teacher["active_params"], rel=0.02)
    assert records["distilled", 1]["initial_flops"] == teacher["flops_model"]
    names = {each["name"]: each["value"] for each in summary["yardsticks"]}
    assert names["the teacher results/first/topk-s1"] == teacher["test"]["accuracy"]
    assert {"results.csv", "summary.json", "report.html"} <= {path.name for path in (first / "results/distil-topk").iterdir()}


def test_distil_into_a_mixture_and_grids_of_its_options(first):
    made = distillation(
        f"{first}/results/first/topk-s0", ["into=topk", "temperature=[1,4]", f"output={first}/results/d", "seeds=1"]
    )
    labels = plan(made).labels
    assert labels == [ALONE, "distilled-temperature1", "distilled-temperature4", EQUAL_STEPS]
    assert made.config.budget.flops == 3e7
    assert made.name == "distil-topk-s0"


def other_weights(first, tmp_path, arm="dense"):
    """A copy of a run, without its weights."""
    record = find_record(f"{first}/results/first/{arm}-s0", None)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/record.json").write_text(json.dumps(record))
    return tmp_path / "bare"


def test_wrong_calls_of_distil_exit_2_with_one_sentence(first, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where there is no store
    run = f"{first}/results/first/topk-s0"
    cases = [
        (["nowhere"], "there is no such store"),
        ([str(other_weights(first, tmp_path))], "has no weights: there is no file"),
        ([run, "into=bagging"], "into='bagging' must be dense or a router's name"),
        ([run, "into=densse"], "unknown into 'densse'; did you mean 'dense'"),
        ([run, "data=breast_cancer"], "must be the run's"),
        ([run, "temprature=3"], "unknown key 'temprature'; did you mean 'temperature'?"),
        ([run, "temperature=0"], "temperature is 0; it must be a number above 0"),
        ([run, "weight=2"], "weight is 2; it must be a number from 0 to 1"),
        ([run, "arms=[dense]"], "arms is set by distil itself"),
        ([run, "budget.seconds=3"], "budget.seconds=3 ends runs by the clock"),
        ([run, "dense"], "'dense' is not key=value; RUN comes first"),
    ]
    for given, said in cases:
        more = [] if "budget.seconds=3" in given else ["budget.steps=2"]
        output = f"output={first}/results/d"
        code = guarded(
            lambda given=given, more=more, output=output: app(["distil", *given, *more, output], standalone_mode=False)
        )
        error = capsys.readouterr().err
        assert code == 2, (given, error)
        assert said in error, (given, error)
        assert len(error.strip().splitlines()) == 1


def test_wrong_origins_of_a_comparison_are_one_sentence(first, tmp_path):
    run = f"{first}/results/first/dense-s0"
    other = f"{first}/results/first/topk-s0"
    cases = [
        ({"name": "topk", "init.form": run}, "did you mean 'init.from'"),
        ({"name": "topk", "init.from": run, "init.take": "wieghts"}, "did you mean 'weights'"),
        ({"name": "topk", "init.from": 3}, "init.from=3 must be a run"),
        ({"name": "topk", "init.from": f"{run}{{seed}}", "init.take": "flops"}, "dense-s00' is no folder and no cell"),
        ({"name": "topk", "init.from": str(other_weights(first, tmp_path))}, "has no weights"),
        ({"name": "topk", "init.from": run, "experts.hidden": 24}, "copied experts are as wide as that: set experts.hidden"),
        ({"name": "dense", "init.from": other}, "arm 'dense': init.from="),
        ({"name": "bagging", "init.from": run}, "arm 'bagging' is not one backbone"),
        ({"name": "random_forest", "init.from": run}, "arm 'random_forest' is not one backbone"),
        ({"name": "dense", "budget.times": 0}, "budget.times=0 must be a number above 0"),
        ({"name": "dense", "budget.steps": 3}, "allowed: budget.times"),
    ]
    for arm, said in cases:
        with pytest.raises(UsageError) as error:
            plan(resolve(configured(first, "wrong", arms=[arm])))
        assert said in str(error.value), arm
    with pytest.raises(UsageError, match=r"init.take=flops adds the run's training FLOPs to budget.flops, which is not set"):
        plan(resolve(configured(first, "wrong", budget={"steps": 3})))
    with pytest.raises(UsageError, match="was trained on other data"):
        plan(resolve(configured(first, "wrong", data={"name": "breast_cancer"}, backbone={"name": "mlp", "d_model": 16})))
    with pytest.raises(UsageError, match=r"did you mean 'init.from'"):
        resolve(["init.form=x"])
    with pytest.raises(UsageError, match=r"dense-s2' is no folder and no cell"):
        plan(resolve(configured(first, "wrong", seeds="auto")))  # not when its seed's turn comes


def test_upcycled_weights_are_those_of_its_own_seed(first):
    jobs = plan(resolve(configured(first, "upcycle"))).jobs
    inits = {job.spec.seed: job.spec.init for job in jobs if job.spec.label == "upcycled"}
    for seed, init in inits.items():
        assert Path(init.weights).parent.name == f"dense-s{seed}"
        saved = torch.load(init.weights, weights_only=True)["state_dict"]
        assert all(torch.equal(value, saved[f"arm.{name}"]) for name, value in init.state().items())
