"""Runs in MLflow: the only file that knows mlflow. Everything else hands it plain records."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from routelab.training.record import finite
from routers.errors import UsageError

CELL_TAG = "routelab.cell"
"""The tag of a child run that holds its cell, the content address of (arm, seed, data, budget, code)."""

PARAM_LIMIT = 6000
_NOTE_LIMIT = 5000
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_COSTS = (
    "flops_model",
    "flops_executed",
    "flops_per_example",
    "flops_per_example_measured",
    "active_params",
    "total_params",
    "seconds",
    "steps",
)
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
# The defaults of mlflow retry for minutes: a server that died would hold up every cell of a comparison.
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


_FLUSH_SECONDS = 5.0
_EVERY_POINT = "flops"
"""A key that every point of a curve has."""


@dataclass
class _Live:
    """A run that is going on. steps: the points that are written or waiting. totals: metrics written by an earlier call.
    params: those that are written."""

    start: int
    steps: set[int] = field(default_factory=set)
    totals: set[str] = field(default_factory=set)
    params: set[str] = field(default_factory=set)
    waiting: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    written: float = 0.0
    dropped: int = 0


class Tracker:
    """One experiment in one MLflow store.

    Only `open` raises. What fails afterwards is remembered in `problems`, one sentence each, and a method that
    has nothing to return then returns an empty value: a dead store never stops a comparison. Without a `uri` nothing is
    written anywhere, and mlflow need not be installed.
    """

    def __init__(self, uri: str | None, experiment: str) -> None:
        self.uri = "" if uri is None else _absolute(uri)
        self.experiment = experiment
        self.problems: list[str] = []
        self._mlflow: Any = None
        self._live: dict[str, _Live] = {}
        self._experiment_id = ""

    def open(self) -> None:
        """Opens the store, creating it and the experiment where missing, and proves that it can be written."""
        if not self.uri:
            return
        try:
            with _initialising(self.uri):
                client = _client(self.uri)
                self._experiment_id = self._prepare(client)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"tracking.uri {_shown(self.uri)!r} cannot be opened for writing: {_reason(error)}") from error
        self._mlflow = client

    def start_parent(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        note: str,
        run_id: str | None = None,
    ) -> str:
        """Starts the run that groups a comparison's cells, or takes up `run_id` again if the store still has it."""
        parent = ""
        if not self.uri:
            return parent
        with self._guard(f"the parent run {name!r} was not recorded"):
            found = self._find(run_id)
            known: Mapping[str, str] = {}
            if found is None:
                parent = self._client.create_run(self._experiment_id, run_name=name).info.run_id
            else:
                parent = found.info.run_id
                known = found.data.params
                self._client.update_run(parent, status="RUNNING")
            # A parameter cannot be changed once written: a resumed run keeps its first values.
            flat = {key: value for key, value in _flatten(params).items() if key not in known}
            self._log(parent, params=flat, tags={**tags, "mlflow.note.content": note})
        return parent

    def children(self, parent_id: str) -> dict[str, str]:
        """The finished child runs of a parent: cell to run id."""
        found: dict[str, str] = {}
        if not parent_id:
            return found
        with self._guard("the finished runs could not be listed"):
            token: str | None = None
            while True:
                page = self._client.search_runs(
                    [self._client.get_run(parent_id).info.experiment_id],
                    filter_string=f"tags.`mlflow.parentRunId` = '{parent_id}' and attributes.status = 'FINISHED'",
                    max_results=1000,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                for run in page:
                    if CELL_TAG in run.data.tags:
                        found[run.data.tags[CELL_TAG]] = run.info.run_id
                token = page.token
                if not token:
                    break
        return found

    def log_record(self, record: Mapping[str, Any], parent_id: str | None, name: str) -> str:
        """Writes one whole record as a run, below the parent if there is one; returns the run id, empty if that failed.

        An unfinished run of the same cell is taken up again; what it has already is not written twice.
        """
        run_id = self.start_run(record, parent_id, name, seconds=finite(record.get("seconds")) or 0.0)
        return self.end_run(run_id, record, name)

    def start_run(self, opening: Mapping[str, Any], parent_id: str | None, name: str, seconds: float = 0.0) -> str:
        """Starts the run of a cell, or takes up an unfinished one; its id, empty if that failed.

        opening: the record as far as it is known (config, arm, seed, data, provenance.cell). seconds: how long the run
        has been going on already.
        """
        run_id = created = ""
        if not self.uri:
            return run_id
        cell = _provenance(opening).get("cell")
        with self._guard(f"the run {name!r} was not recorded"):
            found = self._unfinished(str(cell), parent_id) if cell else None
            params = _params(opening)
            if found is None:
                tags = {CELL_TAG: str(cell)} if cell else {}
                if parent_id:
                    tags["mlflow.parentRunId"] = parent_id
                start = int(1000 * (time.time() - seconds))
                run = self._client.create_run(self._experiment_id, start_time=start, tags=tags, run_name=name)
                created = run.info.run_id
                begun = _Live(start)
            else:
                run = found
                self._client.update_run(run.info.run_id, status="RUNNING")
                history = self._client.get_metric_history(run.info.run_id, _EVERY_POINT)
                begun = _Live(run.info.start_time, {point.step for point in history}, set(run.data.metrics))
                params = {key: value for key, value in params.items() if key not in run.data.params}
            self._log(run.info.run_id, params=params)
            begun.params = {*params, *(run.data.params if found is not None else ())}
            self._live[run.info.run_id] = begun
            run_id = run.info.run_id
        if created and not run_id:
            # A run without its settings must not look alive.
            with contextlib.suppress(Exception):
                self._client.set_terminated(created, status="FAILED")
        return run_id

    def log_points(self, run_id: str, points: Iterable[Mapping[str, Any]], *, now: bool = False) -> None:
        """Adds points to a run's curve. They are written together, every few seconds, or at once with `now`."""
        live = self._live.get(run_id)
        if live is None:
            return
        for point in points:
            step = int(finite(point.get("step")) or 0)
            if step not in live.steps:
                live.steps.add(step)
                live.waiting.append((step, point))
        if not live.waiting or (not now and time.monotonic() - live.written < _FLUSH_SECONDS):
            return
        with self._guard("points of a curve were not recorded"):
            batch: list[tuple[str, float, int, int]] = []
            for step, point in live.waiting:
                values = _Values(live.start)
                for key, value in point.items():
                    if key != "step":
                        values.add(key, value, finite(point.get("seconds")) or 0.0, step)
                live.dropped += values.dropped
                # A point is written whole or not at all, so that a resumed run knows which it has.
                if len(batch) + len(values.found) > _METRICS_PER_BATCH:
                    self._log(run_id, metrics=batch)
                    batch = []
                batch += values.found
            self._log(run_id, metrics=batch)
            live.waiting, live.written = [], time.monotonic()

    def end_run(self, run_id: str, record: Mapping[str, Any], name: str) -> str:
        """Writes what a finished record adds, and ends the run; its id, empty if something could not be written."""
        live = self._live.get(run_id)
        if live is None:
            return ""
        before, written = len(self.problems), False
        self.log_points(run_id, record.get("curve") or [], now=True)
        with self._guard(f"the run {name!r} was not recorded completely"):
            values = _totals(record, live.start)
            # What only the whole record knows: whether the arm leaks, what its loader filled in.
            params = {key: value for key, value in _params(record).items() if key not in live.params}
            metrics = [value for value in values.found if value[0] not in live.totals]
            self._log(run_id, params=params, tags=_tags(record), metrics=metrics)
            dropped = live.dropped + values.dropped
            if dropped:
                self._client.set_tag(run_id, "routelab.values_not_finite", str(dropped))
            diff = _provenance(record).get("git_diff")
            if diff:
                self._client.log_text(run_id, str(diff), "git_diff.txt")
            status = "FINISHED" if record.get("status") == "ok" and len(self.problems) == before else "FAILED"
            self._client.set_terminated(run_id, status=status)
            written = len(self.problems) == before
        if not written:
            # A half-written run must not look alive, nor finished.
            with contextlib.suppress(Exception):
                self._client.set_terminated(run_id, status="FAILED")
        del self._live[run_id]
        return run_id if written else ""

    def stop(self) -> None:
        """Ends the runs that are still going on as KILLED; they can be taken up again."""
        for run_id in list(self._live):
            self.log_points(run_id, [], now=True)
            self.finish(run_id, "KILLED")
            del self._live[run_id]

    def _unfinished(self, cell: str, parent_id: str | None) -> Any:
        """The newest run of this cell that did not end by itself, below the same parent; None if there is none."""
        page = self._client.search_runs(
            [self._experiment_id],
            filter_string=f"tags.`{CELL_TAG}` = '{cell}'",
            max_results=100,
            order_by=["attributes.start_time DESC"],
        )
        for run in page:
            if run.info.status in ("RUNNING", "KILLED") and run.data.tags.get("mlflow.parentRunId", "") == (parent_id or ""):
                return run
        return None

    def log_artifacts(self, run_id: str, paths: Iterable[str | Path]) -> None:
        """Copies files, and folders under their own name, into a run's artifacts."""
        if not run_id:
            return
        for path in map(Path, paths):
            with self._guard(f"the artifact {path.name!r} was not recorded"):
                if path.is_dir():
                    self._client.log_artifacts(run_id, str(path), artifact_path=path.name)
                else:
                    self._client.log_artifact(run_id, str(path))

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """Ends a run with FINISHED, FAILED or KILLED."""
        if not run_id:
            return
        with self._guard(f"the end of run {run_id} was not recorded"):
            self._client.set_terminated(run_id, status=status)

    @property
    def _client(self) -> Any:
        if self._mlflow is None:
            raise RuntimeError("the tracker is not open")
        return self._mlflow

    def _prepare(self, client: Any) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            database = _sqlite_path(self.uri)
            # Given as a plain path, a space or a '#' in a folder's name would be read as part of a URI.
            location = None if database is None else (database.parent / "mlartifacts").as_uri()
            identity = str(client.create_experiment(self.experiment, artifact_location=location))
        elif found.lifecycle_stage != "active":
            raise UsageError(
                f"tracking.experiment {self.experiment!r} was deleted in {_shown(self.uri)}: restore it or choose another name"
            )
        else:
            identity = str(found.experiment_id)
        # Proves that an existing store takes writes.
        client.set_experiment_tag(identity, "routelab", "true")
        return identity

    def _find(self, run_id: str | None) -> Any:
        if not run_id:
            return None
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def _log(
        self,
        run_id: str,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, Any] | None = None,
        metrics: Sequence[tuple[str, float, int, int]] = (),
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        for chunk in _chunks(list((params or {}).items()), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=[Param(key, value) for key, value in chunk])
        clean = {_key(key): str(value)[:_NOTE_LIMIT] for key, value in (tags or {}).items() if value is not None}
        for chunk in _chunks(list(clean.items()), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in chunk])
        for chunk in _chunks(metrics, _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=[Metric(key, value, stamp, step) for key, value, stamp, step in chunk])

    @contextlib.contextmanager
    def _guard(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.problems.append(f"tracking.uri {_shown(self.uri)!r}: {consequence}: {_reason(error)}")


def ui_command(uri: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command and the whole environment that serve the MLflow UI over a store, on this machine only."""
    if _is_server(uri):
        raise UsageError(f"tracking.uri {_shown(uri)!r} is a server already: open that address in a browser")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", _absolute(uri)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return command, {**os.environ, **_QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _client(uri: str) -> Any:
    """A client of its own: the global tracking URI of mlflow is neither read nor set."""
    os.environ.update(_QUIET)
    for key, value in _IMPATIENT.items():
        os.environ.setdefault(key, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise UsageError(f"tracking.uri {_shown(uri)!r} needs the package mlflow, which is not installed") from error
    for name in ("mlflow", "alembic"):
        # Failures are told in `problems`; a traceback on the terminal would tell them a second time.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def _initialising(uri: str) -> Iterator[None]:
    """Readies the way to the store; for sqlite, lets one process at a time create it."""
    if _is_server(uri):
        _ping(uri)
        yield
        return
    if not uri.startswith("sqlite:"):
        yield
        return
    database = _sqlite_path(uri)
    if database is None:
        raise UsageError(f"tracking.uri {uri!r} names no file: write sqlite:///PATH")
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=120):
        yield


def _ping(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            pass
    except urllib.error.HTTPError:
        return  # It answers; whether it lets us write is seen next.
    except (OSError, ValueError) as error:
        raise UsageError(f"tracking.uri {_shown(uri)!r} does not answer: {_reason(error)}") from error


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _sqlite_path(uri: str) -> Path | None:
    """The file of a `sqlite:///path` URI; None for any other URI and for a database in memory."""
    if not uri.startswith("sqlite:///"):
        return None
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return None if path in ("", ":memory:") else Path(path).absolute()


def _absolute(uri: str) -> str:
    """The URI with the path of a sqlite file made absolute, so that a later change of folder does not matter."""
    database = _sqlite_path(uri)
    if database is None:
        return uri
    mark, query = uri.partition("?")[1:]
    return f"sqlite:///{database}{mark}{query}"


def _shown(uri: str) -> str:
    """The URI without its password."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def _reason(error: BaseException) -> str:
    """The first sentence of an error, short and without passwords; of a database's error, what the driver said."""
    driver = getattr(error, "orig", None)
    if isinstance(driver, BaseException):
        return _reason(driver)
    found = re.search(r"\(([\w.]+Error)\) ([^\n]*)", str(error))
    lines = [f"{found[1]}: {found[2]}"] if found else str(error).strip().splitlines()
    text = _shown(re.split(r"[.;] [A-Z]", lines[0].strip())[0] if lines else "").rstrip(".")
    if found:
        return text[:300]
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _provenance(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record.get("provenance") or {}


def _tags(record: Mapping[str, Any]) -> dict[str, str]:
    provenance = _provenance(record)
    status = str(record.get("status", "failed"))
    tags = {
        "routelab.status": status,
        CELL_TAG: provenance.get("cell"),
        "routelab.git_revision": provenance.get("git_revision"),
        "mlflow.source.git.commit": provenance.get("git_revision"),
        "routelab.git_dirty": str(bool(provenance.get("git_diff"))).lower(),
        "routelab.data_digest": provenance.get("data_digest"),
        "routelab.python": provenance.get("python"),
        "routelab.command": provenance.get("command"),
        "routelab.versions": json.dumps(provenance["versions"], default=str) if provenance.get("versions") else None,
        "routelab.metric": record.get("metric"),
        "routelab.causal": record.get("causal"),
        "routelab.leaks": record.get("leaks"),
        "routelab.evaluation_coupled": record.get("evaluation_coupled"),
    }
    if record.get("leaks"):
        tags["mlflow.note.content"] = f"This run leaks: its outputs depend on {record['leaks']}, which its task forbids."
    if status != "ok":
        error = record.get("error") or "no reason was recorded"
        tags["routelab.error"] = error
        tags["mlflow.note.content"] = f"Failed: {error}"
    return {key: str(value)[:_NOTE_LIMIT] for key, value in tags.items() if value is not None}


def _params(record: Mapping[str, Any]) -> dict[str, str]:
    flat = _flatten(record.get("config") or {})
    for key in ("arm", "seed", "data"):
        if record.get(key) is not None:
            flat.setdefault(key, str(record[key])[:PARAM_LIMIT])
    if record.get("leaks"):
        flat["leaks"] = str(record["leaks"])[:PARAM_LIMIT]
    return flat


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.c` to text; lists, and what is in them, as JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{key}."))
        else:
            text = json.dumps(value, default=str) if isinstance(value, Mapping | list | tuple) else str(value)
            # An empty value is refused by some stores.
            flat[_key(key)] = text[:PARAM_LIMIT] or '""'
    return flat


class _Values:
    """Numbers on their way into the store as (key, value, milliseconds, step), and how many were not finite."""

    def __init__(self, start: int) -> None:
        self.start, self.dropped = start, 0
        self.found: list[tuple[str, float, int, int]] = []

    def add(self, key: str, value: object, seconds: float, step: int) -> None:
        number = finite(value)
        if number is not None:
            self.found.append((_key(key), number, self.start + int(1000 * seconds), step))
        elif value is not None and not isinstance(value, str):
            self.dropped += 1


def _totals(record: Mapping[str, Any], start: int) -> _Values:
    """The numbers of a record that stand once: quality, cost, telemetry at the end."""
    values = _Values(start)
    seconds = finite(record.get("seconds")) or 0.0
    points = record.get("curve") or []
    last = int(finite(record.get("steps")) or (finite(points[-1].get("step")) if points else 0.0) or 0)
    for group in ("test", "validation", "telemetry"):
        for key, value in (record.get(group) or {}).items():
            values.add(f"{group}/{key}", value, seconds, last)
    for key in _COSTS:
        values.add(f"cost/{key}", record.get(key), seconds, last)
    for key in ("drop_rate", "load_cv"):
        values.add(f"routing/{key}", record.get(key), seconds, last)
    return values


def _key(key: object) -> str:
    """A key in the characters that MLflow takes: alphanumerics and `_ - . / : space`."""
    text = re.sub(r"[^A-Za-z0-9_\-./: ]", "_", str(key)).strip("/ ")[:250]
    return text or "_"


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
