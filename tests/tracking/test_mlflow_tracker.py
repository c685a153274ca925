"""The tracker against a real sqlite store."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from routelab.core.errors import UsageError
from routelab.tracking.artifacts import ui_command
from routelab.tracking.mlflow_tracker import Tracker

mlflow = pytest.importorskip("mlflow")

DIFF = "diff --git a/x b/x\n+new\n"


def record(arm: str = "dense", seed: int = 0, points: int = 3, **changes: Any) -> dict[str, Any]:
    curve = [
        {
            "step": 10 * i,
            "flops": 1e6 * i,
            "seconds": 0.1 * i,
            "lr": 0.1,
            "train/loss": 1.0 / (i + 1),
            "val/loss": 2.0 / (i + 1),
        }
        for i in range(points)
    ]
    curve[-1]["val/accuracy"] = None
    return {
        "status": "ok",
        "error": None,
        "arm": arm,
        "seed": seed,
        "data": "digits",
        "metric": "accuracy",
        "test": {"loss": 0.5, "accuracy": 0.9},
        "validation": {"loss": 0.6, "accuracy": None},
        "flops_model": 1e9,
        "flops_executed": float("nan"),
        "steps": 10 * (points - 1),
        "seconds": 3.5,
        "load_cv": 0.1,
        "causal": True,
        "telemetry": {"router/load cv (max)": 0.3},
        "curve": curve,
        "config": {"data": {"name": "digits"}, "seeds": [0, 1], "text": "x" * 7000, "empty": "", "odd,key": 1},
        "provenance": {
            "versions": {"torch": "2.13"},
            "git_revision": "abc",
            "git_diff": DIFF,
            "data_digest": "sha256:1",
            "cell": f"cell-{arm}-{seed}",
            "python": "3.11",
            "command": "routelab compare",
        },
        **changes,
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose tables exist already: creating them takes seconds."""
    path = tmp_path_factory.mktemp("a folder #1") / "deep" / "mlflow.db"
    Tracker(f"sqlite:///{path}", "first").open()
    return path


@pytest.fixture
def tracker(store: Path, request: pytest.FixtureRequest) -> Tracker:
    found = Tracker(f"sqlite:///{store}", request.node.name)
    found.open()
    return found


def client(tracker: Tracker) -> Any:
    return mlflow.MlflowClient(tracking_uri=tracker.uri)


def test_a_record_becomes_a_child_run(tracker: Tracker, store: Path) -> None:
    parent = tracker.start_parent("table", {"data": {"name": "digits"}}, {"kind": "compare"}, "the note")
    child = tracker.log_record(record(), parent, "dense-0")
    assert tracker.problems == []
    run = client(tracker).get_run(child)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "dense-0"
    assert run.info.end_time - run.info.start_time >= 3500
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["routelab.cell"] == "cell-dense-0"
    assert run.data.tags["routelab.git_revision"] == "abc"
    assert run.data.tags["routelab.data_digest"] == "sha256:1"
    assert run.data.tags["routelab.values_not_finite"] == "1"
    assert run.data.params["data.name"] == "digits"
    assert run.data.params["seeds"] == "[0, 1]"
    assert run.data.params["seed"] == "0"
    assert run.data.params["odd_key"] == "1"
    assert len(run.data.params["text"]) == 6000
    assert run.data.metrics["test/loss"] == 0.5
    assert run.data.metrics["validation/loss"] == 0.6
    assert run.data.metrics["telemetry/router/load cv _max_"] == 0.3
    assert run.data.metrics["cost/flops_model"] == 1e9
    assert "validation/accuracy" not in run.data.metrics
    assert "cost/flops_executed" not in run.data.metrics
    assert Path(client(tracker).download_artifacts(child, "git_diff.txt")).read_text() == DIFF
    assert list((store.parent / "mlartifacts").rglob("git_diff.txt"))
    top = client(tracker).get_run(parent)
    assert top.info.status == "RUNNING"
    assert top.data.tags["mlflow.note.content"] == "the note"


def test_every_point_of_a_long_curve_carries_flops(tracker: Tracker) -> None:
    child = tracker.log_record(record(points=700), None, "long")
    assert tracker.problems == []
    loss = client(tracker).get_metric_history(child, "val/loss")
    flops = client(tracker).get_metric_history(child, "flops")
    assert len(loss) == 700
    assert {point.step for point in loss} == {point.step for point in flops} == {10 * i for i in range(700)}
    assert all(isinstance(point.step, int) for point in loss)
    assert {point.value for point in flops} == {1e6 * i for i in range(700)}


def test_the_loads_of_the_experts_are_two_files(tracker: Tracker) -> None:
    loads = [[[1.0, 1.0], [2.0, 0.0]]] * 3
    child = tracker.log_record(record("switch", load=loads), None, "switch-0")
    assert tracker.problems == []
    assert {found.path for found in client(tracker).list_artifacts(child)} == {
        "git_diff.txt",
        "load.csv",
        "load.png",
        "record.json",
    }
    rows = Path(client(tracker).download_artifacts(child, "load.csv")).read_text().splitlines()
    assert len(rows) == 1 + 3 * 2 * 2
    assert Path(client(tracker).download_artifacts(child, "load.png")).read_bytes().startswith(b"\x89PNG")
    dense = tracker.log_record(record(load=None), None, "dense-0")
    assert {found.path for found in client(tracker).list_artifacts(dense)} == {"git_diff.txt", "record.json"}


def test_failed_cells_are_failed_runs_and_no_finished_children(tracker: Tracker) -> None:
    parent = tracker.start_parent("table", {}, {}, "")
    good = tracker.log_record(record(), parent, "dense-0")
    bare = {
        "status": "failed",
        "error": "loss is nan at step 3",
        "arm": "top2",
        "seed": 0,
        "test": None,
        "provenance": {"cell": "c"},
    }
    bad = tracker.log_record(bare, parent, "top2-0")
    tracker.log_record(record(seed=7), None, "elsewhere")
    run = client(tracker).get_run(bad)
    assert run.info.status == "FAILED"
    assert run.data.tags["routelab.error"] == "loss is nan at step 3"
    assert "loss is nan" in run.data.tags["mlflow.note.content"]
    assert tracker.children(parent) == {"cell-dense-0": good}
    assert tracker.problems == []


def test_a_resumed_run_has_no_gap_and_no_duplicate(tracker: Tracker) -> None:
    whole = record(points=6)
    run_id = tracker.start_run(whole, None, "dense-0")
    tracker.log_points(run_id, whole["curve"][:2], now=True)
    tracker.log_points(run_id, whole["curve"][2:3])  # waits in the buffer, and is lost with the process
    again = Tracker(tracker.uri, tracker.experiment)
    again.open()
    assert again.start_run(whole, None, "dense-0") == run_id
    again.log_points(run_id, whole["curve"][:4], now=True)  # a resumed run tells its earlier points again
    again.stop()
    assert client(tracker).get_run(run_id).info.status == "KILLED"
    third = Tracker(tracker.uri, tracker.experiment)
    third.open()
    assert third.log_record(whole, None, "dense-0") == run_id
    assert client(tracker).get_run(run_id).info.status == "FINISHED"
    for key in ("flops", "val/loss", "train/loss"):
        assert [point.step for point in client(tracker).get_metric_history(run_id, key)] == [0, 10, 20, 30, 40, 50]
    assert len(client(tracker).get_metric_history(run_id, "test/loss")) == 1
    # A finished run is not taken up again.
    assert third.log_record(whole, None, "dense-0") not in ("", run_id)
    assert tracker.problems == again.problems == third.problems == []


def test_a_run_under_another_parent_is_another_run(tracker: Tracker) -> None:
    parent = tracker.start_parent("table", {}, {}, "")
    alone, below = tracker.start_run(record(), None, "dense-0"), tracker.start_run(record(), parent, "dense-0")
    assert alone != below
    assert tracker.start_run(record(), parent, "dense-0") == below


def test_a_parent_is_resumed(tracker: Tracker, tmp_path: Path) -> None:
    parent = tracker.start_parent("table", {"a": 1}, {}, "one")
    tracker.finish(parent, "KILLED")
    again = Tracker(tracker.uri, tracker.experiment)
    again.open()
    assert again.start_parent("table", {"a": 2, "b": 3}, {}, "two", run_id=parent) == parent
    run = client(tracker).get_run(parent)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"a": "1", "b": "3"}
    assert run.data.tags["mlflow.note.content"] == "two"
    assert again.start_parent("table", {}, {}, "", run_id="0" * 32) not in ("", parent)
    (tmp_path / "report.html").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "y.csv").write_text("y")
    again.log_artifacts(parent, [tmp_path / "report.html", tmp_path / "folder"])
    assert [entry.path for entry in client(tracker).list_artifacts(parent)] == ["folder", "report.html"]
    again.finish(parent, "FINISHED")
    assert client(tracker).get_run(parent).info.status == "FINISHED"
    assert again.problems == []


def test_a_store_that_cannot_be_opened_is_one_sentence(tmp_path: Path, store: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "text.db").write_text("this is not a database, but it is long enough to be read as one" * 20)
    wrong = [
        f"sqlite:///{tmp_path}/file/x.db",
        f"sqlite:///{tmp_path}/text.db",
        "sqlite://",
        "nonsense://x",
        f"file:{tmp_path}/mlruns",
        "http://me:secret@127.0.0.1:9",
    ]
    for uri in wrong:
        with pytest.raises(UsageError, match=r"^tracking\.uri ") as caught:
            Tracker(uri, "x").open()
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
    removed = Tracker(f"sqlite:///{store}", "removed")
    removed.open()
    client(removed).delete_experiment(client(removed).get_experiment_by_name("removed").experiment_id)
    with pytest.raises(UsageError, match=r"^tracking\.experiment 'removed' was deleted"):
        Tracker(removed.uri, "removed").open()


def test_a_store_that_dies_is_remembered_and_never_raises(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tracker.start_parent("table", {}, {}, "")

    def fail(*args: object, **options: object) -> None:
        raise OSError("disk full\nsecond line")

    with monkeypatch.context() as broken:
        broken.setattr(tracker._client, "log_batch", fail)
        assert tracker.log_record(record(), parent, "dense-0") == ""
    assert len(tracker.problems) == 1
    assert "disk full" in tracker.problems[0]
    assert "\n" not in tracker.problems[0]
    assert tracker.children(parent) == {}

    def cells() -> list[tuple[str, int]]:
        found = client(tracker).search_runs([tracker._experiment_id], "tags.routelab.cell != ''")
        return [(run.info.status, len(run.data.params)) for run in found]

    assert cells() == [("KILLED", 0)]
    # It is taken up again when the store is back, not told a second time.
    for method in ("log_text", "set_terminated"):
        with monkeypatch.context() as broken:
            broken.setattr(tracker._client, method, fail)
            assert tracker.log_record(record(), parent, "dense-0") == ""
    assert len(tracker.problems) == 3
    assert tracker.log_record(record(), parent, "dense-0") != ""
    ((status, params),) = cells()
    assert status == "FINISHED"
    assert params > 0
    assert len(tracker.children(parent)) == 1
    monkeypatch.setattr(tracker._client, "create_run", fail)
    assert tracker.start_parent("again", {}, {}, "") == ""
    assert tracker.log_record(record(), "", "dense-1") == ""
    tracker.log_artifacts("", ["x"])
    tracker.finish("")
    tracker.log_artifacts(parent, ["/nowhere/x"])
    assert len(tracker.problems) == 6


@pytest.mark.long
def test_two_processes_may_create_the_store_together(tmp_path: Path) -> None:
    code = "import sys; from routelab.tracking.mlflow_tracker import Tracker; Tracker(sys.argv[1], 'x').open()"
    both = [subprocess.Popen([sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]


def test_importing_the_file_leaves_mlflow_alone() -> None:
    code = "import sys, routelab.tracking.mlflow_tracker; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ui_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, environment = ui_command("sqlite:///mlflow.db", 5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "ui"]
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/mlflow.db"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5001"
    assert command[command.index("--workers") + 1] == "1"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["PATH"] == os.environ["PATH"]
    with pytest.raises(UsageError, match="server already"):
        ui_command("http://localhost:5000", 5001)


def test_without_a_store_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    off = Tracker(None, "x")
    off.open()
    parent = off.start_parent("table", {}, {}, "")
    assert off.log_record(record(), parent, "dense-0") == ""
    off.log_artifacts(parent, [tmp_path])
    off.stop()
    off.finish(parent)
    assert off.children(parent) == {}
    assert off.problems == []
    assert list(tmp_path.iterdir()) == []


def test_a_databases_error_is_what_its_driver_said() -> None:
    from routelab.tracking.uri import reason

    text = "(raised as a result of Query-invoked autoflush; consider ...)\n(sqlite3.OperationalError) database or disk is full\n[SQL: x]"
    assert reason(RuntimeError(text)) == "sqlite3.OperationalError: database or disk is full"
    assert reason(ValueError("One thing. Another thing.\nThird")) == "ValueError: One thing"
