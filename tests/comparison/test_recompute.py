"""Every claim of a comparison, computed again from its CSV files by scipy and numpy alone."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from routelab.cli.app import app, guarded
from routelab.comparison import compare as module
from routelab.comparison import comparison_runner
from routelab.comparison.compare import carry_out
from routelab.comparison.cross_dataset import across
from routelab.comparison.execute import Event
from routelab.comparison.prepared_comparison import plan
from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.records.json_io import write_json
from routelab.report.plots.cost_plots import isoflop

ARMS = ["dense", "switch", "top2", "soft"]
GAIN = {"switch": 1.4, "top2": 1.0, "soft": 2.5}


def pretended(jobs, workers):
    """`run_jobs` without training: a power law in the FLOPs of the matched arm, and seeds that differ."""
    for job in jobs:
        rng = np.random.default_rng([job.spec.seed, *job.spec.label.encode()])
        size = (job.spec.arm.backbone.get("hidden") or 64) / 64
        flops = 1e9 * (0.3 + 0.7 * size) * job.spec.budget.steps / 40
        arm = job.spec.arm.name
        loss = 0.2 + (flops * GAIN.get(arm, 1.0) / 1e9) ** -0.4 + 0.01 * math.sin(job.spec.seed) + rng.normal(0, 0.004)
        curve = [
            {"step": s, "flops": flops * s / 4, "seconds": s / 2, "train/loss": loss + 4 - s, "val/loss": loss + 4 - s}
            for s in (1, 2, 3, 4)
        ]
        record = {
            "arm": job.spec.label, "seed": job.spec.seed, "data": "digits", "metric": "accuracy", "status": "ok",
            "seconds": 2.0 * (1.5 if arm == "soft" else 1.0) * math.exp(rng.normal(0, 0.05)), "test": {"loss": loss, "accuracy": 0.9},
            "validation": {"loss": loss}, "config": job.spec.plain(), "curve": curve, "flops_model": flops, "flops_executed": flops,
            "flops_per_example": 1e6 * (0.3 + 0.7 * size), "active_params": 1000 * size, "total_params": 1000 * size,
            "drop_rate": 0.0, "load_cv": 0.1, "causal": True, "provenance": {"cell": job.key, "data_digest": "d161"},
        }  # fmt: skip
        write_json(job.folder / "record.json", record)
        yield Event(job, 1.0, record=record)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recompute")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_runner, "run_jobs", pretended)
        patch.setattr(module, "inference", lambda *given: {})
        ready = plan(
            resolve([f"output={folder}/results/mine", "tracking.uri=null", "budget.steps=40", "backbone.d_model=16",
                     "backbone.depth=1", "backbone.heads=2", "seeds=6", f"arms=[{','.join(ARMS)}]", "experts.count=4",
                     "dense_ladder=[0.25,0.5,1,2,4]", "budget_ladder=[0.25,0.5,1]"])
        )  # fmt: skip
        made = carry_out(ready)
    return folder, made.summary


def rows(folder, name):
    return list(csv.DictReader((folder / "results/mine" / name).open()))


def test_table_differences_tests_and_times(done):
    folder, summary = done
    table = rows(folder, "results.csv")
    assert {row["arm"] for row in table} == {*ARMS, "dense@0.25", "dense@0.5", "dense@2", "dense@4"}
    loss = {arm: np.array([float(row["test_loss"]) for row in table if row["arm"] == arm]) for arm in ARMS}
    seconds = {arm: np.array([float(row["seconds"]) for row in table if row["arm"] == arm]) for arm in ARMS}
    p_values = {}
    for arm in ARMS:
        entry = summary["arms"][arm]
        low, high = stats.t.interval(0.95, 5, loss[arm].mean(), stats.sem(loss[arm]))
        assert (entry["loss"]["mean"], entry["loss"]["low"], entry["loss"]["high"]) == pytest.approx(
            (loss[arm].mean(), low, high)
        )
        if arm == "dense":
            continue
        gap = np.log(loss[arm]) - np.log(loss["dense"])
        test = stats.ttest_rel(np.log(loss[arm]), np.log(loss["dense"]))
        p_values[arm] = float(test.pvalue)
        bounds = test.confidence_interval(0.95)
        assert [entry["difference"][part] for part in ("mean", "low", "high")] == pytest.approx(
            [gap.mean(), bounds.low, bounds.high]
        )
        flips = stats.permutation_test((gap,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert entry["p_sign_flip"] == pytest.approx(flips.pvalue)
        ratio = np.log(seconds[arm] / seconds["dense"])
        low, high = stats.t.interval(0.95, 5, ratio.mean(), stats.sem(ratio))
        assert [entry["time_ratio"][part] for part in ("mean", "low", "high")] == pytest.approx(
            np.exp([ratio.mean(), low, high])
        )
    # Holm by hand: the smallest p times 3, the next times 2, the largest as it is, never falling.
    adjusted, running = {}, 0.0
    for rank, arm in enumerate(sorted(p_values, key=p_values.get)):
        running = max(running, min(1.0, (3 - rank) * p_values[arm]))
        adjusted[arm] = running
    for arm, p in adjusted.items():
        assert summary["arms"][arm]["p_holm"] == pytest.approx(p)
        assert (summary["arms"][arm]["state"] in ("better", "worse")) == (p < 0.05)


def envelope(points):
    best, front = math.inf, []
    for cost, loss in sorted(points):
        if loss < best:
            best = loss
            front.append((cost, loss))
    return front


def cost_of(front, loss):
    x, y = np.log([cost for cost, _ in front]), np.array([value for _, value in front])
    return math.exp(np.interp(-loss, -y, x))


def test_leverage_and_dense_size(done):
    folder, summary = done
    ends = rows(folder, "endpoints.csv")
    assert len(ends) == (4 + 4) * 3 * 6

    def mean(arm, size, budget, column):
        values = [
            float(row[column]) for row in ends if (row["arm"], float(row["size"]), float(row["budget"])) == (arm, size, budget)
        ]
        return np.array(values)

    grid = [(size, budget) for size in (0.25, 0.5, 1.0, 2.0, 4.0) for budget in (0.25, 0.5, 1.0)]
    dense = envelope([(mean("dense", *each, "flops_model").mean(), mean("dense", *each, "test_loss").mean()) for each in grid])
    for arm, gain in GAIN.items():
        place = summary["arms"][arm]["leverage"]
        loss, spent = mean(arm, 1.0, 1.0, "test_loss").mean(), mean(arm, 1.0, 1.0, "flops_model").mean()
        assert place["own"]["mean"] == pytest.approx(cost_of(dense, loss) / spent)
        assert place["own"]["low"] < place["own"]["mean"] < place["own"]["high"]
        assert place["own"]["mean"] == pytest.approx(gain, rel=0.15)
        assert len(place["at"]) == 3
        mine = envelope(
            [(mean(arm, 1.0, b, "flops_model").mean(), mean(arm, 1.0, b, "test_loss").mean()) for b in (0.25, 0.5, 1.0)]
        )
        for each in place["at"]:
            assert each["mean"] == pytest.approx(cost_of(dense, each["loss"]) / cost_of(mine, each["loss"]))
        sizes = [
            (mean("dense", s, 1.0, "total_params").mean(), mean("dense", s, 1.0, "test_loss").mean())
            for s in (0.25, 0.5, 1.0, 2.0, 4.0)
        ]
        assert place["effective_size"]["params"] == pytest.approx(cost_of(envelope(sizes), loss))


def test_pareto_front(done):
    folder, summary = done
    rows_of = {}
    for row in rows(folder, "endpoints.csv"):
        key = (row["arm"], float(row["size"]), float(row["budget"]))
        rows_of.setdefault(key, []).append((float(row["flops_model"]), float(row["test_loss"])))
    means = {key: tuple(np.mean(values, axis=0)) for key, values in rows_of.items()}
    best = {key for key, (c, y) in means.items() if not any(a <= c and b <= y and (a, b) != (c, y) for a, b in means.values())}
    named = {
        (row["arm"], row["size"], row["budget"])
        for label, row in summary["rows"].items()
        if label in summary["frontier"]["pareto"]
    }
    assert named == best


def test_isoflop_figure_from_the_same_endpoints(done):
    folder, summary = done
    assert not (folder / "results/mine/figures/isoflop.csv").exists(), "arms have one size here"
    records = [
        {"arm": label, "status": "ok", "flops_per_example": 1e6 * row["size"], "test": {"loss": 1.0 / row["size"]}}
        for label, row in summary["rows"].items()
    ]
    rows_ = {label: {**row, "size": 2.0 if row["arm"] == "soft" else row["size"]} for label, row in summary["rows"].items()}
    drawn = isoflop({**summary, "rows": rows_}, records)
    assert drawn.name == "isoflop"
    assert {row[0] for row in drawn.table[1:]} == set(ARMS)


def test_curves_hold_what_the_figure_shows(done):
    folder, _ = done
    curves, drawn = rows(folder, "curves.csv"), rows(folder, "figures/loss.csv")
    for row in drawn:
        mine = [[float(c["flops"]), float(c["val/loss"])] for c in curves if c["arm"] == row["arm"]]
        at = [loss for flops, loss in mine if flops == pytest.approx(float(row["flops"]))]
        assert float(row["mean"]) == pytest.approx(np.mean(at))


def test_report_again_and_across(done, monkeypatch, capsys):
    folder, summary = done
    page = folder / "results/mine/report.html"
    before = page.read_text()
    page.unlink()
    monkeypatch.chdir(folder)
    assert guarded(lambda: app(["report", "mine"], standalone_mode=False)) == 0
    assert page.read_text() == before, "the same records make the same page"
    other = str(_on_other_data(folder))
    found = across(["mine", other], folder / "results")
    assert found["arms"]["soft"]["interquartile_mean"]["mean"] < -0.1
    assert found["arms"]["soft"]["probability_of_improvement"] == 1.0
    assert found["ranks"] is None
    capsys.readouterr()
    assert guarded(lambda: app(["report", "mine", other], standalone_mode=False)) == 0
    assert "soft" in capsys.readouterr().out
    assert json.loads((folder / "results/across.json").read_text())["reference"] == summary["reference"]
    assert guarded(lambda: app(["report", "mime"], standalone_mode=False)) == 2
    assert "mine" in capsys.readouterr().err
    with pytest.raises(UsageError, match="'mine' is named twice"):
        across(["mine", "mine"], folder / "results")
    shutil.copytree(folder / "results/mine", folder / "results/again")
    with pytest.raises(UsageError, match=r"'mine' and 'again' are on the same data .digest \w+., which counts once"):
        across(["mine", "again"], folder / "results")
    write_json(Path(other) / "summary.json", {**summary, "reference": "switch"})
    with pytest.raises(UsageError, match="must have one reference"):
        across(["mine", other], folder / "results")


def _on_other_data(folder: Path) -> Path:
    """A copy of the comparison, as if it were one on other data."""
    shutil.copytree(folder / "results", folder / "elsewhere")
    for place in (folder / "elsewhere/cells").glob("*/record.json"):
        record = json.loads(place.read_text())
        write_json(place, {**record, "provenance": {**record["provenance"], "data_digest": "feed"}})
    return folder / "elsewhere/mine"
