"""A recorded run, found by each of its names, trains to the same bits again; two runs are told apart; what runs cost."""

import json

import pytest

from routelab.cli.app import app, guarded
from routelab.comparison.compare import compare
from routelab.comparison.inference_latency import inference, timed
from routelab.comparison.replay import explain, replay
from routelab.core.errors import UsageError
from routelab.data.base import load
from routelab.records.json_io import write_json
from routelab.records.run_lookup import find_record, spec_of
from routelab.tracking.artifacts import store_at


@pytest.fixture(scope="module")
def done(tmp_path_factory, in_this_process, new_store):
    folder = tmp_path_factory.mktemp("replay")
    new_store(folder / "results/mlflow.db")
    words = [
        f"output={folder}/results/mine", f"tracking.uri=sqlite:///{folder}/results/mlflow.db", "budget.steps=4", "trainer.checks=2",
        "backbone.d_model=16", "backbone.depth=1", "backbone.heads=2", "experts.count=4", "seeds=1", "arms=[dense,top2]", "workers=1",
    ]  # fmt: skip
    with in_this_process():
        return folder, compare(words)


@pytest.mark.slow
def test_a_run_has_four_names(done):
    from mlflow.tracking import MlflowClient

    folder, found = done
    record, uri = found.records[1], f"sqlite:///{folder}/results/mlflow.db"
    cell = record["provenance"]["cell"]
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    run_id = next(run.info.run_id for run in runs if run.data.tags.get("routelab.cell") == cell)
    for name in (cell, str(folder / "results/cells" / cell), str(folder / "results/mine/top2-s0"), run_id):
        assert find_record(name, store_at(uri), folder / "results")["test"] == record["test"]
    with pytest.raises(UsageError, match=r"'top-s0'.*'top2-s0'"):
        find_record(str(folder / "results/mine/top-s0"), store_at(uri), folder / "results")
    with pytest.raises(UsageError, match=r"is a comparison; name one of its runs, such as .*mine/dense-s0"):
        find_record(str(folder / "results/mine"), store_at(uri), folder / "results")


@pytest.mark.slow
def test_replay_is_equal_to_the_last_bit_and_says_where_it_is_not(done, capsys):
    folder, found = done
    record = found.records[1]
    cell = folder / "results/cells" / record["provenance"]["cell"]
    assert guarded(lambda: app(["replay", str(cell)], standalone_mode=False)) == 0
    assert "equal to the last bit: all losses at 2 points" in capsys.readouterr().out
    changed = json.loads(json.dumps(record))
    changed["curve"][1]["val/loss"] *= 1 + 1e-15
    assert replay(changed).difference[0] == "val/loss at step 4"
    write_json(folder / "forged" / "record.json", changed)
    assert guarded(lambda: app(["replay", str(folder / "forged"), "--json"], standalone_mode=False)) == 1
    assert json.loads(capsys.readouterr().out)["difference"][0] == "val/loss at step 4"


@pytest.mark.slow
def test_explain(done, capsys):
    folder, found = done
    one, two = found.records
    told = explain(one, two)
    assert told["settings"]["arm.name"] == ("dense", "top2")
    assert "seed" not in told["settings"]
    assert not told["origin"]
    assert "test.loss" in told["results"]
    cells = [str(folder / "results/cells" / record["provenance"]["cell"]) for record in (one, two)]
    assert guarded(lambda: app(["explain", *cells], standalone_mode=False)) == 0
    assert "dense | top2" in capsys.readouterr().out
    assert guarded(lambda: app(["explain", cells[0], cells[0]], standalone_mode=False)) == 0
    assert "the two records are equal" in capsys.readouterr().out


@pytest.mark.slow
def test_the_specification_survives_the_record(done):
    record = done[1].records[1]
    assert spec_of(record).plain() == record["config"]


@pytest.mark.slow
def test_predictions_of_the_trained_arms_are_timed_once(done):
    folder, found = done
    times = {label: arm["inference"] for label, arm in found.summary["arms"].items()}
    assert set(times) == {"dense", "top2"}
    for each in times.values():
        assert list(each) == ["1", "16", "256"]
        assert each["1"] > each["256"] > 0, "per example, a batch is cheaper"
    kept = json.loads((folder / "results/mine/inference.json").read_text())
    assert kept["seconds_per_example"] == times
    data = load("digits")
    assert inference(found.records, folder / "results/mine", data) == times
    # Without weights there is nothing to time.
    assert inference(found.records, folder / "nowhere/mine", data) == {}


def test_an_arm_that_cannot_predict_one_example_costs_no_comparison_its_report():
    class Needs2:
        def predict(self, batch):
            if len(batch) < 2:
                raise RuntimeError("no variance of one")

    small, large = (load("digits").test.select(slice(0, size)) for size in (1, 16))
    assert list(timed({"needs2": Needs2(), "other": Needs2()}, large)) == ["needs2", "other"]
    assert timed({"needs2": Needs2()}, small) == {}


@pytest.mark.slow
def test_memory_is_recorded(done):
    for record in done[1].records:
        parameters = record["memory"]["parameters"]
        assert parameters == pytest.approx(4 * record["total_params"], rel=0.01)
        assert record["memory"]["optimizer"] == pytest.approx(2 * parameters, rel=0.05), "AdamW holds two moments"
        assert record["memory"]["peak"] is None or record["memory"]["peak"] >= 0


def test_what_has_no_replay(tmp_path):
    with pytest.raises(UsageError, match=r"tracking.uri 'sqlite:////.*/none.db': there is no such store"):
        find_record("abc", store_at(f"sqlite:///{tmp_path}/none.db"), tmp_path)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UsageError, match="there is no store to ask"):
        find_record("abc", None, tmp_path)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        find_record(str(tmp_path), None, tmp_path)
    with pytest.raises(UsageError, match="failed, so there is nothing to compare with"):
        replay({"status": "failed", "arm": "x", "seed": 1})
