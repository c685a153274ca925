"""An arm that sees what it must not, or is scored in company, says so wherever it is shown."""

import csv
import json
import re

import pytest

from routelab.cli import compare_command, train_command
from routelab.comparison.compare import compare
from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.report.arm_labels import marked, marks


def words(folder, *more):
    return [
        f"output={folder}/results/mine", f"tracking.uri=sqlite:///{folder}/results/mlflow.db", "data=domains", "backbone=decoder",
        "data.bytes_per_domain=30000", "data.window=16", "data.domains=[law,mathematics]", "budget.steps=2", "trainer.checks=1",
        "backbone.d_model=16", "backbone.depth=1", "backbone.heads=2", "experts.count=4", "match.on=none", "seeds=1", "workers=1",
        *more,
    ]  # fmt: skip


ARMS = "arms=[dense,switch,{name: soft, allow_leak: true},{name: expert_choice, across: batch}]"
LEAK, COUPLED = "soft (leaks: later tokens)", "expert_choice (batch-coupled)"


@pytest.fixture(scope="module")
def done(tmp_path_factory, in_this_process, new_store):
    folder = tmp_path_factory.mktemp("marks")
    new_store(folder / "results/mlflow.db")
    with in_this_process():
        return folder, compare(words(folder, ARMS))


@pytest.mark.slow
def test_records_and_results(done):
    folder, found = done
    records = {record["arm"]: record for record in found.records}
    assert all(record["status"] == "ok" for record in found.records)
    assert {name: record["leaks"] for name, record in records.items()} == {
        "dense": None,
        "switch": None,
        "soft": "later tokens",
        "expert_choice": None,
    }
    assert [name for name, record in records.items() if record["evaluation_coupled"]] == ["expert_choice"]
    rows = {row["arm"]: row for row in csv.DictReader((folder / "results/mine/results.csv").open())}
    assert {name: row["causal"] for name, row in rows.items()} == {
        "dense": "true",
        "switch": "true",
        "soft": "false",
        "expert_choice": "true",
    }
    assert "bits_per_byte" in rows["dense"]


@pytest.mark.slow
def test_summary(done):
    folder, _ = done
    summary = json.loads((folder / "results/mine/summary.json").read_text())
    assert summary["arms"]["soft"]["leaks"] == "later tokens"
    assert summary["arms"]["soft"]["causal"] is False
    assert summary["arms"]["soft"]["marks"] == ["leaks: later tokens"]
    assert summary["arms"]["expert_choice"]["marks"] == ["batch-coupled"]
    assert summary["arms"]["switch"]["marks"] == []
    assert {each["name"] for each in summary["yardsticks"]} == {"xz -9", "xz -9 after training data", "order-5 byte model"}


@pytest.mark.slow
def test_terminal(done, capsys):
    folder, _ = done
    compare_command.compare(resolve(words(folder, ARMS)))
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert any(LEAK in row for row in rows)
    assert any(COUPLED in row for row in rows)
    assert f"  {LEAK}: " in out
    assert not re.search(r"(?<!\S)soft:", out)
    assert "Yardstick: order-5 byte model has bits_per_byte " in out
    train_command.train(resolve(words(folder, "arm=soft", "router.allow_leak=true")))
    assert f"{LEAK} on domains" in capsys.readouterr().out


@pytest.mark.slow
def test_report(done):
    folder, _ = done
    text = (folder / "results/mine/report.html").read_text()
    assert '<th scope="row"><span>soft</span><small class="bad">leaks: later tokens</small></th>' in text
    assert '<th scope="row"><span>expert_choice</span><small class="bad">batch-coupled</small></th>' in text
    assert f">{LEAK}</text>" in text, "the figure's legend too"
    assert "order-5 byte model" in text


@pytest.mark.slow
def test_mlflow(done):
    from mlflow.tracking import MlflowClient

    folder, _ = done
    client = MlflowClient(f"sqlite:///{folder}/results/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("domains").experiment_id], max_results=100)
    runs = {run.info.run_name: run.data for run in runs}
    assert runs["soft-s0"].tags["routelab.leaks"] == "later tokens"
    assert runs["soft-s0"].params["leaks"] == "later tokens"
    assert "depend on later tokens" in runs["soft-s0"].tags["mlflow.note.content"]
    assert "routelab.leaks" not in runs["switch-s0"].tags
    assert runs["expert_choice-s0"].tags["routelab.evaluation_coupled"] == "True"
    assert runs["switch-s0"].tags["routelab.evaluation_coupled"] == "False"


def test_sentences_carry_the_mark():
    from routelab.comparison.summary import summarise

    def record(arm, seed, loss, **more):
        return {"arm": arm, "seed": seed, "status": "ok", "data": "d", "metric": "accuracy",
                "test": {"loss": loss, "accuracy": 0.5}, **more}  # fmt: skip

    records = [record("dense", s, 2.0 + s / 1000) for s in range(4)]
    records += [record("soft", s, 1.0 + s / 900, leaks="later tokens") for s in range(4)]
    found = summarise("n", records, ["dense", "soft"], "dense")
    assert f"{LEAK} had a lower test loss than dense" in found["sentence"]


def test_marks():
    assert marks({"leaks": "later tokens", "evaluation_coupled": True}) == ["leaks: later tokens", "batch-coupled"]
    assert marks({"leaks": None, "leaks_in_training": "later tokens"}) == ["training sees later tokens"]
    assert marks({}) == []
    assert marked("a", []) == "a"
    assert marked("a", ["b", "c"]) == "a (b, c)"


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        ("soft", "router 'soft' lets an output depend on later tokens, which task 'domains' forbids; causal routers: "
         ".*hash.*switch.*topk.*; router.allow_leak=true overrides$"),
        ("top2", "causal routers: .*hash.*, or top2 with router.capacity_factor=null; router.allow_leak=true overrides$"),
        ("expert_choice", "causal routers: .*hash.*, or expert_choice with router.across=batch; router.allow_leak=true overrides$"),
        ("{name: switch, priority: probability}", "router 'switch' lets an output depend on later tokens"),
    ],
)  # fmt: skip
def test_leaks_are_refused_before_any_work(arm, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        compare(words(tmp_path, f"arms=[dense,{arm}]"))
    assert not (tmp_path / "results").exists()
