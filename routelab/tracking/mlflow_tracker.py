"""Runs in MLflow: the only file that knows mlflow. Everything else hands it plain records."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from routelab.core.errors import UsageError
from routelab.core.number_format import finite
from routelab.records.json_io import plain
from routelab.tracking.load_heatmap import load_figure, load_table
from routelab.tracking.record_mapping import (
    CELL_TAG,
    NOTE_LIMIT,
    Values,
    flat_text,
    params_of,
    provenance_of,
    store_key,
    tags_of,
    totals_of,
)
from routelab.tracking.uri import absolute, initialising, reason, shown, sqlite_path

_METRICS_PER_BATCH = 800  # with parameters and tags, a call takes 1,000
_PARAMS_PER_BATCH = 100
# A server's client prints the address of every run that ends, into the midst of --json.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
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
        self.uri = "" if uri is None else absolute(uri)
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
            with initialising(self.uri):
                client = client_of(self.uri)
                self._experiment_id = self._prepare(client)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"tracking.uri {shown(self.uri)!r} cannot be opened for writing: {reason(error)}") from error
        self._mlflow = client

    def start_parent(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        note: str,
        run_id: str | None = None,
        parent_id: str | None = None,
        began: float | None = None,
    ) -> str:
        """Starts a run that groups others (a comparison, a study, an arm, a trial), below `parent_id` if there is one, or takes
        up `run_id` again if the store still has it. began: when, in seconds since 1970, if not now."""
        parent = ""
        if not self.uri:
            return parent
        with self._guard(f"the parent run {name!r} was not recorded"):
            found = self._find(run_id)
            known: Mapping[str, str] = {}
            every = {**tags, "mlflow.note.content": note}
            if found is None:
                below = {"mlflow.parentRunId": parent_id} if parent_id else {}
                start = None if began is None else int(1000 * began)
                # With its tags from the first moment: a store that dies now must know whose run this is.
                made = self._client.create_run(self._experiment_id, start, {**below, **_clean(every)}, run_name=name)
                parent = made.info.run_id
            else:
                parent = found.info.run_id
                known = found.data.params
                self._client.update_run(parent, status="RUNNING")
            # A parameter cannot be changed once written: a resumed run keeps its first values.
            flat = {key: value for key, value in flat_text(params).items() if key not in known}
            self._log(parent, params=flat, tags=every if found is not None else None)
        return parent

    def children(self, parent_id: str) -> dict[str, str]:
        """The finished child runs of a parent: cell to run id."""
        found: dict[str, str] = {}
        if not parent_id:
            return found
        with self._guard("the finished runs could not be listed"):
            below = f"tags.`mlflow.parentRunId` = '{parent_id}' and attributes.status = 'FINISHED'"
            for run in self._search(below):
                if CELL_TAG in run.data.tags:
                    found[run.data.tags[CELL_TAG]] = run.info.run_id
        return found

    def tagged(self, tag: str, among: tuple[str, str]) -> dict[str, tuple[str, str]]:
        """The runs of the experiment that have the tag, and the tag and value `among`: the tag's value to run id and status."""
        found: dict[str, tuple[str, str]] = {}
        if self.uri:
            with self._guard("earlier runs could not be listed"):
                for run in self._search(f"tags.`{among[0]}` = '{among[1]}'"):
                    if tag in run.data.tags:
                        found[run.data.tags[tag]] = (run.info.run_id, run.info.status)
        return found

    def _search(self, text: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                filter_string=text,
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def log_numbers(self, run_id: str, points: Iterable[Mapping[str, Any]]) -> None:
        """Writes numbers of a run that groups others: points with a `step`, those with a step that it has are left out."""
        if not run_id:
            return
        with self._guard("numbers of a run were not recorded"):
            now, batch = int(1000 * time.time()), Values(0)
            rows = list(points)
            key = next((name for row in rows for name in row if name != "step"), None)
            known = {point.step for point in self._client.get_metric_history(run_id, store_key(key))} if key else set()
            for row in rows:
                if row["step"] not in known:
                    for name, value in row.items():
                        if name != "step":
                            batch.add(name, value, now / 1000, int(row["step"]))
            self._log(run_id, metrics=batch.found)

    def note(
        self, run_id: str, tags: Mapping[str, Any], numbers: Mapping[str, Any] | None = None, when: float | None = None
    ) -> None:
        """Writes tags, and numbers that stand once, of a run. when: in seconds since 1970, if not now; what is written again with
        the same time stays one point."""
        if run_id:
            with self._guard("tags of a run were not recorded"):
                values = Values(int(1000 * (time.time() if when is None else when)))
                for name, value in (numbers or {}).items():
                    values.add(name, value, 0.0, 0)
                self._log(run_id, tags=tags, metrics=values.found)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Writes a text as an artifact of a run."""
        if run_id:
            with self._guard(f"the artifact {name!r} was not recorded"):
                self._client.log_text(run_id, text, name)

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
        cell = provenance_of(opening).get("cell")
        with self._guard(f"the run {name!r} was not recorded"):
            found = self._unfinished(str(cell), parent_id) if cell else None
            params = params_of(opening)
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
            # A run without its settings must not look alive; killed, it is taken up again.
            with contextlib.suppress(Exception):
                self._client.set_terminated(created, status="KILLED")
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
                values = Values(live.start)
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
        before = len(self.problems)
        self.log_points(run_id, record.get("curve") or [], now=True)
        with self._guard(f"the run {name!r} was not recorded completely"):
            values = totals_of(record, live.start)
            # What only the whole record knows: whether the arm leaks, what its loader filled in.
            params = {key: value for key, value in params_of(record).items() if key not in live.params}
            metrics = [value for value in values.found if value[0] not in live.totals]
            self._log(run_id, params=params, tags=tags_of(record), metrics=metrics)
            dropped = live.dropped + values.dropped
            if dropped:
                self._client.set_tag(run_id, "routelab.values_not_finite", str(dropped))
            self._client.log_text(run_id, json.dumps(plain(dict(record)), allow_nan=False), "record.json")
            diff = provenance_of(record).get("git_diff")
            if diff:
                self._client.log_text(run_id, str(diff), "git_diff.txt")
            table, figure = load_table(record), load_figure(record)
            if table and figure:
                self._client.log_text(run_id, table, "load.csv")
                self._client.log_figure(run_id, figure, "load.png", save_kwargs={"dpi": 120})
            if record.get("traceback"):
                self._client.log_text(run_id, str(record["traceback"]), "traceback.txt")
            if len(self.problems) == before:
                ends = {"ok": "FINISHED", "stopped": "KILLED"}
                self._client.set_terminated(run_id, status=ends.get(str(record.get("status")), "FAILED"))
        written = len(self.problems) == before
        if not written:
            # A half-written run must not look alive, nor finished: killed, it is taken up again by whoever tells of it next.
            with contextlib.suppress(Exception):
                self._client.set_terminated(run_id, status="KILLED")
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

    def finish(self, run_id: str, status: str = "FINISHED", ended: float | None = None) -> None:
        """Ends a run with FINISHED, FAILED or KILLED. ended: when, in seconds since 1970, if not now."""
        if not run_id:
            return
        with self._guard(f"the end of run {run_id} was not recorded"):
            self._client.set_terminated(run_id, status, None if ended is None else int(1000 * ended))

    @property
    def _client(self) -> Any:
        if self._mlflow is None:
            raise RuntimeError("the tracker is not open")
        return self._mlflow

    def _prepare(self, client: Any) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            database = sqlite_path(self.uri)
            # Given as a plain path, a space or a '#' in a folder's name would be read as part of a URI.
            location = None if database is None else (database.parent / "mlartifacts").as_uri()
            identity = str(client.create_experiment(self.experiment, artifact_location=location))
        elif found.lifecycle_stage != "active":
            raise UsageError(
                f"tracking.experiment {self.experiment!r} was deleted in {shown(self.uri)}: restore it or choose another name"
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

        parts = itertools.zip_longest(
            _chunks([Param(key, value) for key, value in (params or {}).items()], _PARAMS_PER_BATCH),
            _chunks([RunTag(key, value) for key, value in _clean(tags or {}).items()], _PARAMS_PER_BATCH),
            _chunks([Metric(*each) for each in metrics], _METRICS_PER_BATCH),
            fillvalue=(),
        )
        # Every call is a transaction, so what fits into one goes together.
        for some_params, some_tags, some_metrics in parts:
            self._client.log_batch(run_id, params=some_params, tags=some_tags, metrics=some_metrics)

    @contextlib.contextmanager
    def _guard(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.problems.append(f"tracking.uri {shown(self.uri)!r}: {consequence}: {reason(error)}")


def client_of(uri: str) -> Any:
    """A client of its own: the global tracking URI of mlflow is neither read nor set."""
    os.environ.update(QUIET)
    for key, value in _IMPATIENT.items():
        os.environ.setdefault(key, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise UsageError(f"tracking.uri {shown(uri)!r} needs the package mlflow, which is not installed") from error
    for name in ("mlflow", "alembic"):
        # Failures are told in `problems`; a traceback on the terminal would tell them a second time.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def _clean(tags: Mapping[str, Any]) -> dict[str, str]:
    return {store_key(key): str(value)[:NOTE_LIMIT] for key, value in tags.items() if value is not None}


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
