"""A sweep in MLflow, without and with a server that is away. Importing MLflow and making its tables is most of the time."""

import contextlib
import json
from pathlib import Path

import pytest

from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.sweeps.mlflow_sync import Mirror, trial_name
from routelab.sweeps.sweep import Sweep
from routelab.sweeps.worker import work
from routelab.tracking.mlflow_tracker import Tracker

mlflow = pytest.importorskip("mlflow")


def store() -> str:
    return f"sqlite:///{Path('results/mlflow.db').absolute()}"


@pytest.fixture
def empty_store(new_store):
    """Put an empty database where `store` says."""
    new_store(Path("results/mlflow.db"))


def runs():
    client = mlflow.MlflowClient(store())
    experiment = client.get_experiment_by_name("mine")
    return {run.info.run_id: run for run in client.search_runs([experiment.experiment_id], max_results=1000)}


def kinds(found):
    return sorted((run.data.tags.get("routelab.kind", "seed"), run.info.status) for run in found.values())


@pytest.mark.usefixtures("empty_store")
def test_study_arm_trial_and_seed_are_nested_and_their_ends_told_apart(swept):
    sweep, studies = swept(store())
    mirror = Mirror(sweep, studies)
    assert mirror.look()
    mirror.close("FINISHED")
    assert mirror.problem is None
    found = runs()
    assert kinds(found) == [
        ("arm", "FINISHED"), ("seed", "FINISHED"), ("seed", "FINISHED"), ("seed", "FINISHED"), ("study", "FINISHED"),
        ("trial", "FAILED"), ("trial", "FINISHED"), ("trial", "FINISHED"), ("trial", "FINISHED"), ("trial", "KILLED"),
    ]  # fmt: skip
    names = {}
    for run in found.values():
        parent = found.get(run.data.tags.get("mlflow.parentRunId", ""))
        names[run.info.run_name] = parent.info.run_name if parent else None
    assert names["switch"] in ("mine: tuning", "switch")  # the arm, and the trial with its usual settings
    assert names["switch-cf1"] == "switch"
    assert names["switch-cf1-s0"] == "switch-cf1"
    arm = next(run for run in found.values() if run.data.tags.get("routelab.kind") == "arm")
    assert arm.data.params["search.optimizer.lr"] == "0.0001 to 0.03, log"
    assert arm.data.params["search.experts.count"] == "4, 8, 16"
    trial = next(run for run in found.values() if run.info.run_name == "switch-cf1")
    assert trial.data.params["router.capacity_factor"] == "1.0"
    assert trial.data.metrics["objective/loss"] == studies.arms[0].trials()[1].values[0]
    # It lasted as long as the trial, whenever it was copied.
    first = studies.arms[0].trials()[1]
    assert trial.info.start_time == int(1000 * first.datetime_start.timestamp())
    assert trial.info.end_time == int(1000 * first.datetime_complete.timestamp())
    seed = next(run for run in found.values() if run.info.run_name == "switch-cf1-s0")
    assert seed.data.metrics["flops"] > 0
    failed = next(run for run in found.values() if run.info.status == "FAILED")
    assert "nan at step 3" in failed.data.tags["mlflow.note.content"]
    study = next(run for run in found.values() if run.data.tags.get("routelab.kind") == "study")
    listed = [file.path for file in mlflow.MlflowClient(store()).list_artifacts(study.info.run_id)]
    assert {"history-switch.png", "importance-switch.png", "expected-best.png", "trials.csv", "summary.json"} <= set(listed)
    place = mlflow.MlflowClient(store()).download_artifacts(study.info.run_id, "summary.json")
    assert json.loads(Path(place).read_text())["tuning"]["switch"]["complete"] == 3

    # Whoever looks again adds nothing.
    again = Mirror(sweep, studies)
    assert again.look()
    again.close("FINISHED")
    assert kinds(runs()) == kinds(found)


@pytest.mark.usefixtures("empty_store")
def test_a_server_that_is_away_is_tried_again_and_nothing_is_lost(swept, monkeypatch):
    sweep, studies = swept(store())
    mirror = Mirror(sweep, studies)
    with monkeypatch.context() as away:
        away.setattr(Tracker, "open", lambda self: (_ for _ in ()).throw(UsageError("tracking.uri does not answer")))
        assert not mirror.look()
        assert mirror.problem == "tracking.uri does not answer"
    # It comes back, and dies in the middle of a trial.
    whole, left = Tracker.note, iter([True, True])

    def dies(self: Tracker, run_id: str, tags, numbers=None, when=None) -> None:
        if next(left, None) is None:
            with self._guard("tags of a run were not recorded"):
                raise ConnectionError("gone")
            return
        whole(self, run_id, tags, numbers, when)

    with monkeypatch.context() as away:
        away.setattr(Tracker, "note", dies)
        assert not mirror.look(now=True)
        assert mirror.problem is not None
        assert "gone" in mirror.problem
    assert mirror.look(now=True)
    mirror.close("FINISHED")
    assert mirror.problem is None
    assert len([kind for kind, _ in kinds(runs()) if kind == "trial"]) == 5
    assert ("trial", "RUNNING") not in kinds(runs())


@pytest.mark.usefixtures("empty_store")
def test_a_failure_brings_its_traceback(words):
    from routelab.routers.router_registry import register_router
    from routelab.routers.switch import Switch

    @register_router("broken")
    class Broken(Switch):
        def forward(self, inputs):
            if inputs.x.grad_fn is not None:
                raise RuntimeError("my own mistake")
            return super().forward(inputs)

    more = words("trials=1", "arms=[broken]", "match.on=none")
    sweep = Sweep(resolve([word for word in more if "tracking" not in word] + [f"tracking.uri={store()}"]))
    studies = sweep.open()
    work(sweep, studies)
    mirror = Mirror(sweep, studies)
    mirror.look()
    mirror.close("FINISHED")
    failed = [run for run in runs().values() if run.data.tags.get("routelab.kind") == "trial" and run.info.status == "FAILED"]
    assert len(failed) == 5
    place = Path(mlflow.MlflowClient(store()).download_artifacts(failed[0].info.run_id, "traceback.txt"))
    assert "my own mistake" in place.read_text()


def test_without_a_store_nothing_is_written(words):
    sweep = Sweep(resolve(words("trials=2")))
    studies = sweep.open()
    mirror = Mirror(sweep, studies)
    assert mirror.look()
    mirror.close("FINISHED")
    with contextlib.suppress(FileNotFoundError):
        assert not list(Path("results").glob("*.db"))


def test_a_trial_is_called_by_what_differs():
    usual = {"experts.count": 8, "router.capacity_factor": 1.25, "optimizer.lr": 0.002}
    assert trial_name("top2", usual, usual) == "top2"
    other = {"experts.count": 4, "router.capacity_factor": 1.5, "optimizer.lr": 0.00123456, "router.loss_weights.balance": 0.1}
    assert trial_name("top2", other, usual) == "top2-e4-cf1.5-lr0.00123-balance0.1"
