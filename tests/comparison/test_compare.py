"""A comparison from end to end: records, cache, interruption, failures, plugins."""

import csv
import errno
import json
import os
import resource
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from routelab.cli.app import guarded
from routelab.comparison import comparison_runner
from routelab.comparison.compare import compare
from routelab.comparison.prepared_comparison import plan
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.config.run_spec import RunSpec
from routelab.core.errors import StorageError, UsageError
from routelab.core.registry import only_for_now
from routelab.records.json_io import write_json
from routelab.records.run_cache import cell_key
from routelab.routers.router_registry import ROUTERS

COLUMNS = (
    "arm,seed,data,test_loss,test_accuracy,flops_model,flops_executed,flops_per_example,active_params,total_params,seconds,"
    "drop_rate,load_cv,causal,status"
)  # fmt: skip


@pytest.fixture(autouse=True)
def without_plugins():
    with only_for_now(ROUTERS):
        yield


def words(folder, *more):
    return [
        f"output={folder}/results/mine", f"tracking.uri=sqlite:///{folder}/results/mlflow.db", "budget.steps=4", "trainer.checks=2",
        "backbone.d_model=16", "backbone.depth=1", "backbone.heads=2", "experts.count=4", "seeds=2", "arms=[dense,switch]", "workers=1",
        *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_compare_caches_resumes_and_reports(tmp_path, in_this_process):
    """Train the first comparison in a worker, as users do, and the others in this process, to the same bits."""
    first = compare(words(tmp_path))
    assert [record["status"] for record in first.records] == ["ok"] * 4
    assert first.reused == 0
    rows = list(csv.reader((tmp_path / "results/mine/results.csv").open()))
    assert ",".join(rows[0]) == COLUMNS
    assert [row[:3] for row in rows[1:]] == [
        ["dense", "0", "digits"],
        ["switch", "0", "digits"],
        ["dense", "1", "digits"],
        ["switch", "1", "digits"],
    ]
    summary = json.loads((tmp_path / "results/mine/summary.json").read_text())
    assert summary["arms"]["switch"]["difference"]["n"] == 2
    assert "switch" in (tmp_path / "results/mine/report.html").read_text()
    assert not first.problems

    # A damaged cell is trained again, the others are not; the MLflow run goes on.
    cell = first.records[0]["provenance"]["cell"]
    (tmp_path / "results/cells" / cell / "record.json").write_bytes(b"\x00{")
    with in_this_process():
        second = compare(words(tmp_path))
    assert second.reused == 3
    assert [r["test"] for r in second.records] == [r["test"] for r in first.records]

    # One more arm trains only that arm, whichever label the others have.
    with in_this_process():
        third = compare(words(tmp_path, "arms=[dense,switch,soft]"))
    assert third.reused == 4
    assert len(third.records) == 6

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/results/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id], max_results=100)
    assert len(runs) == 2 + 4 + 6  # the cell trained again is the same child, not a second one
    assert all(run.info.status == "FINISHED" for run in runs)


@pytest.mark.slow
@pytest.mark.usefixtures("local_training")
def test_a_failing_plugin_fails_alone(tmp_path):
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "from routelab import Router, register_router\n\n@register_router('broken')\nclass Broken(Router):\n"
        "    def forward(self, inputs):\n"
        "        if self.training:\n            raise RuntimeError('no idea')\n"
        "        from routelab import Routing, TopK\n"
        "        import torch\n"
        "        n = inputs.x_TD.shape[0]\n"
        "        return Routing(TopK(torch.zeros(n, 1, dtype=torch.int64), inputs.x.new_ones(n, 1), self.num_experts))\n"
    )
    done = compare(words(tmp_path, "arms=[dense,broken]", f"plugins=[{plugin}]"))
    status = {(r["arm"], r["seed"]): r["status"] for r in done.records}
    assert status == {("dense", 0): "ok", ("dense", 1): "ok", ("broken", 0): "failed", ("broken", 1): "failed"}
    assert "RuntimeError before the first step: no idea" in done.failed[0]["error"]
    assert done.summary["arms"]["broken"]["verdict"] == "failed on every seed"


@pytest.mark.long
def test_a_process_that_dies_takes_no_other_run_with_it(tmp_path):
    """The pool that it dies in breaks for all runs that wait in it, twice over if they waited together again."""
    plugin = tmp_path / "deadly.py"
    plugin.write_text(
        "import os\nimport signal\n\nfrom routelab import register_router\nfrom routelab.routers.topk import TopKRouter\n\n"
        "@register_router('deadly')\nclass Deadly(TopKRouter):\n    def forward(self, inputs):\n"
        "        if self.training and inputs.x.device.type != 'meta' and os.environ.get('DEADLY') != str(os.getpid()):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(inputs)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEADLY", str(os.getpid()))  # This process plans, and must live.
        done = compare(words(tmp_path, "arms=[deadly,dense]", "seeds=1", f"plugins=[{plugin}]"))
    assert {r["arm"]: r["status"] for r in done.records} == {"deadly": "failed", "dense": "ok"}
    assert done.failed[0]["error"] == "its process died (out of memory?)"


BUILDS = {
    "ValueError: no idea": "(self, d_model, num_experts):\n        raise ValueError('no idea\\nat all')\n",
    "its constructor must take (d_model, num_experts, **options)": "(self, d_model):\n        super().__init__(d_model, 1)\n",
}


def broken_plugin(folder, constructor):
    plugin = folder / "broken.py"
    plugin.write_text(
        "from routelab import Router, register_router\n\n@register_router('broken')\nclass Broken(Router):\n"
        f"    def __init__{constructor}    def forward(self, inputs):\n        pass\n"
    )
    return f"plugins=[{plugin}]"


@pytest.mark.long
@pytest.mark.parametrize("reason", BUILDS)
def test_a_plugin_that_cannot_be_built_fails_alone(tmp_path, reason):
    done = compare(words(tmp_path, "arms=[dense,broken]", "seeds=1", broken_plugin(tmp_path, BUILDS[reason])))
    assert [(r["arm"], r["status"]) for r in done.records] == [("dense", "ok"), ("broken", "failed")]
    assert (
        f"broken.py) {'cannot be built' if 'ValueError' in reason else 'broke the contract'}: {reason}"
        in done.failed[0]["error"]
    )
    assert len(done.failed[0]["error"].splitlines()) == 1


def test_wrong_options_are_refused_before_any_work_and_a_broken_reference_too(tmp_path):
    plugin = broken_plugin(tmp_path, BUILDS["ValueError: no idea"])
    for more, match in (
        (["arms=[dense,{name: topk, top_k: 9}]"], "top_k is 9; it must be between 1 and the number of experts .4."),
        (["arms=[dense,switch]", "backbone.heads=3"], "heads is 3; it must divide"),
        (["arms=[dense,{name: broken, foo: 1}]", plugin], "unknown option of router 'broken' 'foo'"),
        (["arms=[broken,dense]", "match.reference=broken", plugin], "the other arms are matched to arm 'broken', which fails"),
    ):
        with pytest.raises(UsageError, match=match):
            compare(words(tmp_path, *more))
    assert not (tmp_path / "results/cells").exists()


@pytest.mark.long
def test_a_full_disk_ends_the_comparison_in_one_sentence_and_keeps_what_is_done(tmp_path, monkeypatch, capsys):
    """The first arm's files fit under the limit that the worker inherits, the second arm's weights (524 kB) do not."""
    more = ["experts.count=64", "match.on=none", "seeds=1"]
    real = comparison_runner.run_jobs

    def on_a_small_disk(jobs, workers):
        events = real(jobs, workers)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
        try:
            first = next(events)  # The worker has started by now.
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        yield first
        yield from events

    monkeypatch.setattr(comparison_runner, "run_jobs", on_a_small_disk)
    assert guarded(lambda: compare(words(tmp_path, *more))) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: cannot write")
    assert "File too large; 1 of 2 runs are done and kept, and the same command goes on once there is room" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "results/mine/results.csv").exists()
    monkeypatch.setattr(comparison_runner, "run_jobs", real)
    done = compare(words(tmp_path, *more))
    assert done.reused == 1
    assert [record["status"] for record in done.records] == ["ok"] * 2
    assert not done.problems


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    place = tmp_path / "summary.json"
    write_json(place, {"arms": 1})

    def full(self, *given, **options):
        with self.open("w") as file:
            file.write("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="summary.json': No space left on device"):
        write_json(place, {"arms": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert json.loads(place.read_text()) == {"arms": 1}


@pytest.mark.slow
@pytest.mark.parametrize("is_local", [True, pytest.param(False, marks=pytest.mark.long)])
def test_an_interrupted_comparison_goes_on(tmp_path, monkeypatch, in_this_process, is_local):
    real = comparison_runner.run_jobs

    def cut_short(jobs, workers):
        for event in real(jobs, workers):
            yield event
            if event.record is not None:
                raise KeyboardInterrupt

    monkeypatch.setattr(comparison_runner, "run_jobs", cut_short)
    with in_this_process() if is_local else nullcontext():
        with pytest.raises(KeyboardInterrupt):
            compare(words(tmp_path))
        monkeypatch.setattr(comparison_runner, "run_jobs", real)
        done = compare(words(tmp_path))
    assert done.reused >= 1
    assert len(done.records) == 4


def test_closed_folders_and_stores_are_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written to"):
        compare(words(tmp_path, f"output={tmp_path}/file/results"))
    with pytest.raises(UsageError, match="tracking.uri"):
        compare(words(tmp_path, f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db"))
    assert not (tmp_path / "results/cells").exists()


def test_cell_keys_follow_what_decides_the_result(tmp_path):
    def keys(*more):
        return [job.key for job in plan(resolve(words(tmp_path, *more))).jobs]

    plain = keys()
    assert keys("workers=2", "tracking.experiment=other") == plain
    assert not set(keys("optimizer.lr=0.1")) & set(plain)
    assert set(keys("seeds=3")) > set(plain)


def test_a_cell_key_follows_the_device_that_auto_comes_to(tmp_path, monkeypatch):
    def key(*more):
        config = resolve(words(tmp_path, "arms=[switch]", *more)).config
        return cell_key(RunSpec.of(config, arm_choices(config, ["switch"])[0], 0), "digest")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = key()
    assert key("trainer.accelerator=cpu", "trainer.precision=32-true") == on_cpu, "what auto is here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert key() != on_cpu
    assert key() == key("trainer.accelerator=gpu", "trainer.precision=bf16-mixed")
    assert key("trainer.accelerator=cpu") == on_cpu


def test_a_cell_key_follows_the_content_of_a_file_that_an_option_names(tmp_path):
    def key(path):
        config = resolve(words(tmp_path, "arms=[hash]")).config
        spec = RunSpec.of(config, arm_choices(config, [{"name": "hash", "embeddings": str(path)}])[0], 0)
        return cell_key(spec, "digest")

    (tmp_path / "a.npy").write_bytes(b"1")
    (tmp_path / "b.npy").write_bytes(b"1")
    before = key(tmp_path / "a.npy")
    assert key(tmp_path / "b.npy") == before, "where a file lies decides nothing"
    (tmp_path / "a.npy").write_bytes(b"2")
    assert key(tmp_path / "a.npy") != before


@pytest.mark.slow
@pytest.mark.usefixtures("local_training")
def test_a_regression_has_r2_in_the_table(tmp_path):
    done = compare(words(tmp_path, "data=flights", "data.rows=600", "seeds=1", "trainer.batch_size=32"))
    assert [record["status"] for record in done.records] == ["ok"] * 2
    rows = list(csv.DictReader((tmp_path / "results/mine/results.csv").open()))
    assert [float(row["test_r2"]) for row in rows] == [record["test"]["r2"] for record in done.records]
    assert "leaks" not in rows[0]
    assert done.summary["metric"] == "r2"


@pytest.mark.slow
@pytest.mark.usefixtures("local_training")
def test_a_leak_is_marked_wherever_the_arm_is(tmp_path):
    """An arm whose evaluation depends on other examples, let through by router.allow_leak."""
    from mlflow.tracking import MlflowClient

    from routelab.cli.output import table

    given = [word for word in words(tmp_path) if "heads" not in word]
    given += ["data=flights", "data.rows=600", "seeds=1", "trainer.batch_size=32", "backbone=mlp", "router.allow_leak=true"]
    done = compare([*given, "arms=[dense,switch,expert_choice]"])
    records = {record["arm"]: record for record in done.records}
    assert {name: record["leaks"] for name, record in records.items()} == {
        "dense": None, "switch": None, "expert_choice": "other examples",
    }  # fmt: skip
    assert records["expert_choice"]["batch_coupled"]
    rows = {row["arm"]: row["leaks"] for row in csv.DictReader((tmp_path / "results/mine/results.csv").open())}
    assert rows == {"dense": "", "switch": "", "expert_choice": "other examples"}
    assert done.summary["arms"]["expert_choice"]["verdict"].endswith("leaks: an output depends on other examples")
    assert done.summary["sentence"].endswith("outputs of expert_choice depend on what they must not.")
    assert (tmp_path / "results/mine/report.html").read_text().count('<small class="bad">leaks: other examples</small>') == 1
    assert "expert_choice (leaks: other examples)" in list(table(done.summary).columns[0].cells)
    client = MlflowClient(f"sqlite:///{tmp_path}/results/mlflow.db")
    runs = client.search_runs(
        [client.get_experiment_by_name("flights").experiment_id], "tags.`routelab.leaks` = 'other examples'"
    )
    assert len(runs) == 1
