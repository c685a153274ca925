"""A sweep in a real MLflow server, which is killed again and again while it is told."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from routelab.config.resolve import resolve
from routelab.sweeps.mlflow_sync import Mirror
from routelab.sweeps.sweep import Sweep

mlflow = pytest.importorskip("mlflow")


class Server:
    """An MLflow server on sqlite, with artifacts through it, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri, self._folder, self._process = f"http://127.0.0.1:{self._port}", folder, None

    def start(self) -> None:
        folder = self._folder
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
        command += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(self._port), "--workers", "1"]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **quiet}
            )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert self._process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        raise AssertionError((folder / "server.log").read_text())

    def kill(self) -> None:
        """Every process of it, at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    made = Server(folder)
    made.start()
    yield made
    made.kill()


def everything(uri: str) -> list[tuple]:
    """All that a store says of the sweep, without the times and names that differ from copy to copy, sorted."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id], max_results=1000)}
    found = []
    for run_id, run in runs.items():
        parent = runs.get(run.data.tags.get("mlflow.parentRunId", ""))
        points = [(p.key, p.step, p.value) for key in run.data.metrics for p in client.get_metric_history(run_id, key)]
        assert len(points) == len(set(points)), "a point is there twice"
        tags = {key: value for key, value in run.data.tags.items() if key.startswith("routelab")}
        files = sorted(file.path for file in client.list_artifacts(run_id))
        name, above = run.info.run_name, None if parent is None else parent.info.run_name
        params = {key: value for key, value in run.data.params.items() if key != "tracking.uri"}
        found.append((name, str(above), run.info.status, sorted(params.items()), sorted(tags.items()), sorted(points), files))
    return sorted(found, key=lambda each: each[:3])


@pytest.mark.long
def test_a_server_that_is_killed_while_it_is_told_has_everything_once(swept, server, monkeypatch, capsys):
    """About 60 s: four starts of a server. It dies before a request arrives, or after one is done but not answered."""
    import requests

    send, count = requests.Session.send, Counter()
    # The runs of the first trial, of its seed and of the second; of the log batches one of a curve or its totals.
    deaths = {("create", 4): "after", ("create", 7): "after", ("log-batch", 12): "before"}

    def unlucky(self, request, **options):
        what = request.url.rpartition("/")[2]
        count[what] += 1
        how = deaths.pop((what, count[what]), None)
        if how == "after":
            send(self, request, **options)
        if how is not None:
            server.kill()
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", unlucky)
    sweep, studies = swept(server.uri)
    mirror, problems = Mirror(sweep, studies), []
    while not mirror.look(now=True):
        problems.append(mirror.problem)
        if server._process is None:
            server.start()
        assert len(problems) < 9, problems
    mirror.close("FINISHED")
    assert mirror.problem is None
    assert not deaths, "the server was to die more often"
    assert len(problems) == 3
    assert all("tracking.uri" in problem for problem in problems)

    undisturbed = f"sqlite:///{Path('undisturbed.db').absolute()}"
    other = Mirror(Sweep(resolve({**studies.config, "tracking": {**studies.config["tracking"], "uri": undisturbed}})), studies)
    assert other.look(now=True)
    other.close("FINISHED")
    assert everything(server.uri) == everything(undisturbed)
    assert "View run" not in capsys.readouterr().out, "mlflow talks into what is read by machines"
    ends = sorted((dict(each[4]).get("routelab.kind", "seed"), each[2]) for each in everything(server.uri))
    assert ends == [
        ("arm", "FINISHED"), ("seed", "FINISHED"), ("seed", "FINISHED"), ("seed", "FINISHED"), ("study", "FINISHED"),
        ("trial", "FAILED"), ("trial", "FINISHED"), ("trial", "FINISHED"), ("trial", "FINISHED"), ("trial", "KILLED"),
    ]  # fmt: skip
