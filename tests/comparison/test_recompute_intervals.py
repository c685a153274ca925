"""docs/statistics/recompute.py, which knows nothing of this package, computes every interval of comparisons again."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path

import pandas as pd
import pytest
from pretended_runs import World

from routelab.comparison import compare as module
from routelab.comparison import comparison_runner
from routelab.comparison.compare import compare

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "statistics" / "recompute.py"
FIXED = {
    "arm's loss", "arm's metric", "domain's loss", "domain's difference", "difference", "metric's difference", "time", "pair's difference",
    "pair's metric", "pair's time",
}  # fmt: skip


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def run(monkeypatch, folder, world, *overrides):
    monkeypatch.setattr(module, "inference", lambda *given: {})
    monkeypatch.setattr(comparison_runner, "run_jobs", world.run_jobs)
    given = [f"output={folder}/results/mine", "tracking.uri=null", "budget.steps=40", "backbone.d_model=16", "backbone.depth=1",
             "backbone.heads=2", "experts.count=4", "arms=[dense,switch,top2]", "statistics.pairs=[[switch,top2]]"]  # fmt: skip
    return compare([*given, *overrides])


def test_the_script_imports_nothing_of_routelab():
    imports = [node for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} | {getattr(node, "module", None) for node in imports}
    assert not any(name and "routelab" in name for name in names)


@pytest.mark.parametrize(
    ("metric", "uncertainty"),
    [
        ("accuracy", "[seeds,examples]"),
        ("bits_per_byte", "[seeds,examples]"),
        ("r2", "[seeds,examples]"),
        ("accuracy", "[seeds]"),
        ("accuracy", "[examples]"),
    ],
)
def test_a_fixed_comparison(script, monkeypatch, tmp_path, metric, uncertainty):
    world = World(gain={"switch": 0.3, "top2": -0.1}, metric=metric)
    run(monkeypatch, tmp_path, world, "seeds=4", f"statistics.uncertainty={uncertainty}")
    worst = script["deviations"](tmp_path / "results/mine")
    assert set(worst) == FIXED | ({"difference over seeds", "pair over seeds"} if "examples" in uncertainty else set())
    assert max(worst.values()) < 1e-9


@pytest.mark.parametrize("overrides", [["seeds=auto"], ["seeds=auto", "statistics.uncertainty=[seeds]"]])
def test_a_sequential_comparison(script, monkeypatch, tmp_path, overrides):
    world = World(gain={"switch": 0.3, "top2": -0.1}, seed_sd=0.1, unit_sd=0.05)
    run(monkeypatch, tmp_path, world, "statistics.max_seeds=12", *overrides)
    worst = script["deviations"](tmp_path / "results/mine")
    assert set(worst) == FIXED
    assert max(worst.values()) < 1e-6


def test_a_fixed_comparison_over_units_that_gets_more_seeds(script, monkeypatch, tmp_path):
    world = World(gain={"switch": 0.3, "top2": -0.1}, seed_sd=0.1, unit_sd=0.05)
    for seeds in ("seeds=3", "seeds=6"):
        run(monkeypatch, tmp_path, world, seeds, "statistics.uncertainty=[examples]")
    assert max(script["deviations"](tmp_path / "results/mine").values()) < 1e-9


def test_arms_that_do_not_depend_on_the_seed(script, monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, World(constant=("dense", "switch")), "seeds=3")
    assert max(script["deviations"](tmp_path / "results/mine").values()) < 1e-9


def test_leverage(script, monkeypatch, tmp_path):
    """A ladder whose losses fall with the size, and an arm inside it."""
    sizes = {"dense@0.25": 0.5, "dense@0.5": 0.25, "dense@2": -0.2, "dense@4": -0.35, "switch": 0.05, "top2": -0.1}
    budgets = {f"{label} b0.5": gain + 0.15 for label, gain in ({"dense": 0.0} | sizes).items()}
    world = World(gain=sizes | budgets, unit_sd=0.02)
    run(monkeypatch, tmp_path, world, "seeds=4", "dense_ladder=[0.25,0.5,1,2,4]", "budget_ladder=[0.5,1]")
    worst = script["deviations"](tmp_path / "results/mine")
    assert worst["leverage"] < 1e-9


def test_the_files_hold_what_the_summary_says(monkeypatch, tmp_path):
    done = run(monkeypatch, tmp_path, World(gain={"switch": 0.3}), "seeds=3")
    folder = tmp_path / "results/mine"
    units, results = pd.read_parquet(folder / "units.parquet"), pd.read_csv(folder / "results.csv")
    assert len(units) == 3 * 3 * 60
    losses = units.groupby(["arm", "seed"], observed=True)[["loss", "count"]].sum()
    means = (losses["loss"] / losses["count"]).reset_index(name="test_loss")
    merged = results.merge(means, on=["arm", "seed"])
    assert merged["test_loss_x"].to_numpy() == pytest.approx(merged["test_loss_y"].to_numpy())
    assert done.summary["unit"] == "document"


def test_a_wrong_interval_is_noticed(script, monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, World(gain={"switch": 0.3}), "seeds=3")
    path = tmp_path / "results/mine/summary.json"
    assert script["main"](path.parent) == 0
    summary = json.loads(path.read_text())
    summary["arms"]["switch"]["difference"]["low"] *= 1.001
    path.write_text(json.dumps(summary))
    assert script["main"](path.parent) == 1
