"""What a sweep ends with: the best settings as a comparison of fresh seeds, and as files."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from routelab.cli.app import app, guarded
from routelab.comparison.prepared_comparison import plan
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import Resolved, resolve
from routelab.report.plots.arm_plots import tuning_budget
from routelab.sweeps.final_comparison import final_config
from routelab.sweeps.study_export import export, importance
from routelab.sweeps.study_status import best_trials, settings_of
from routelab.sweeps.sweep import Sweep
from routelab.sweeps.tuning_cost import tuning
from routelab.sweeps.worker import work


@pytest.fixture
def swept(words):
    arms = "arms=[dense,{name: topk, label: tuned, renormalize: false},{name: bagging, base: dense, members: 2}]"
    sweep = Sweep(resolve([*words("trials=6"), arms]))
    studies = sweep.open()
    work(sweep, studies)
    return sweep, studies


def test_the_best_settings_are_compared_on_fresh_seeds_at_matched_flops(swept):
    sweep, studies = swept
    config = final_config(sweep, studies)
    assert config.seeds == [1, 2]
    choices = {choice.label: choice for choice in arm_choices(config, config.arms)}
    assert list(choices) == ["dense", "tuned", "bagging"]
    for arm in studies.arms:
        best, choice = settings_of(best_trials(arm.trials())[0]), choices[arm.label]
        assert choice.optimizer.lr == best["optimizer.lr"]
        assert choice.optimizer.weight_decay == best["optimizer.weight_decay"]
    tuned, best = choices["tuned"].spec, settings_of(best_trials(studies.arms[1].trials())[0])
    assert tuned.router["renormalize"] is False
    assert tuned.router["top_k"] == best["router.top_k"]
    assert tuned.router["loss_weights"] == {"balance": best["router.loss_weights.balance"]}
    assert tuned.experts["count"] == best["experts.count"]
    assert choices["bagging"].spec.options["members"] == 2
    ready = plan(Resolved(config, "mine", {}))
    assert [row.matched.ratio for row in ready.rows] == pytest.approx([1, 1, 1], abs=0.02)


def test_what_tuning_cost_and_bought_is_drawn(swept):
    _, studies = swept
    found = tuning(studies)
    for arm in studies.arms:
        losses = sorted(trial.values[0] for trial in arm.trials())
        mine = found[arm.label]
        assert mine["flops"] == pytest.approx(sum(trial.user_attrs["spent"]["flops"] for trial in arm.trials()))
        assert [point["loss"] for point in mine["expected_best"]] == pytest.approx(
            [sum(losses) / 2, (3 * losses[0] + losses[1]) / 4]
        )
        assert mine["expected_best"][-1]["flops"] == pytest.approx(mine["flops"])
    drawn = tuning_budget({"tuning": found}, [])
    assert drawn is not None
    assert len(drawn.table) == 7


def test_a_sweep_is_exported(swept, capsys):
    sweep, studies = swept
    paths = export(studies, sweep.output)
    rows = list(csv.DictReader(paths[0].open()))
    assert [(row["arm"], row["trial"], row["state"]) for row in rows[:2]] == [
        ("dense", "0", "COMPLETE"),
        ("dense", "1", "COMPLETE"),
    ]
    assert float(rows[0]["param optimizer.lr"]) == 2e-3
    again = resolve(paths[1])
    assert [choice.label for choice in arm_choices(again.config, again.config.arms)] == ["dense", "tuned", "bagging"]
    assert yaml.safe_load(paths[1].read_text())["seeds"] == [1, 2]
    assert set(importance(studies)) == {"dense", "tuned", "bagging"}
    for command in (["best", "mine"], ["importance", "mine"], ["export", "mine"], ["status", "mine"]):
        assert guarded(lambda command=command: app(["sweep", *command], standalone_mode=False)) == 0
        assert "dense" in capsys.readouterr().out or command[0] == "export"
        assert guarded(lambda command=command: app(["sweep", *command, "--json"], standalone_mode=False)) == 0
        assert json.loads(capsys.readouterr().out)


@pytest.mark.long
def test_one_command_tunes_compares_and_reports(words):
    """About 30 s of CPU: two workers of the sweep, and one of its comparison."""
    call = [sys.executable, "-c", "from routelab.cli.app import main; main()", "sweep", "run", *words("trials=4", "workers=2")]
    done = subprocess.run(
        [*call, "tracking.uri=sqlite:///results/mlflow.db"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained on fresh seeds and read once on test" in done.stdout
    assert "problem" not in done.stdout
    with open("results/mine/results.csv") as file:
        assert {(row["arm"], row["seed"]) for row in csv.DictReader(file)} == {
            ("dense", "1"),
            ("dense", "2"),
            ("switch", "1"),
            ("switch", "2"),
        }
    summary = json.loads(Path("results/mine/summary.json").read_text())
    assert summary["tuning"]["switch"]["complete"] == 2
    assert "What tuning bought" in Path("results/mine/report.html").read_text()
    assert Path("results/mine/figures/tuning.png").is_file()
