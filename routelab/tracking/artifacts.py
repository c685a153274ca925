"""Runs that are in a store already: what lies with them is read, more is left with them, and the MLflow UI shows them."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routelab.core.errors import UsageError
from routelab.records.json_io import read_json
from routelab.tracking.mlflow_tracker import QUIET, client_of
from routelab.tracking.uri import absolute, is_server, reason, shown, sqlite_path


@dataclass(frozen=True)
class MlflowStore:
    """MLflow store at a tracking URI; implements `routelab.records.run_lookup.RunStore`."""

    uri: str

    def read_json(self, run_id: str, artifact: str) -> dict[str, Any]:
        """Return a JSON artifact of a run; UsageError if the store, the run or the artifact does not exist."""
        database = sqlite_path(self.uri)
        if database is not None and not database.is_file():
            raise UsageError(f"tracking.uri {shown(self.uri)!r}: there is no such store")
        try:
            client = client_of(absolute(self.uri))
            client.get_run(run_id)
            with tempfile.TemporaryDirectory() as folder:
                found = read_json(Path(client.download_artifacts(run_id, artifact, folder)))
        except Exception as error:
            raise UsageError(f"run {run_id!r} in tracking.uri {shown(self.uri)!r}: {reason(error)}") from error
        if found is None:
            raise UsageError(f"run {run_id!r} in tracking.uri {shown(self.uri)!r} has no readable {artifact}")
        return found

    @property
    def folder(self) -> Path | None:
        """Folder of a sqlite store; None for a server or another database."""
        database = sqlite_path(self.uri)
        return None if database is None else database.parent


def store_at(uri: str | None) -> MlflowStore | None:
    """Return the store at a tracking URI; None without one."""
    return None if uri is None else MlflowStore(uri)


def leave(uri: str, run_id: str, paths: Iterable[Path], folder: str) -> None:
    """Copies files, and folders under their own name, into `folder` of a run's artifacts; UsageError if that fails."""
    client = client_of(absolute(uri))
    try:
        for path in paths:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), artifact_path=f"{folder}/{path.name}")
            else:
                client.log_artifact(run_id, str(path), artifact_path=folder)
    except Exception as error:
        raise UsageError(f"run {run_id!r} in tracking.uri {shown(uri)!r} takes no artifacts: {reason(error)}") from error


def ui_command(uri: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command and the whole environment that serve the MLflow UI over a store, on this machine only."""
    if is_server(uri):
        raise UsageError(f"tracking.uri {shown(uri)!r} is a server already: open that address in a browser")
    if not re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://.", uri):
        raise UsageError(
            f"--uri {shown(uri)!r} must be a database, such as sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", absolute(uri)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return command, {**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
