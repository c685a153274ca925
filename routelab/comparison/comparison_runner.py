"""Runner of a comparison, which reads cached runs, trains the other runs, and tracks all of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from routelab.comparison.execute import Event, Job, default_workers, failed, opening, run_jobs
from routelab.comparison.prepared_comparison import Plan, Watch
from routelab.core.errors import StorageError
from routelab.records.run_cache import finished, training_key
from routelab.tracking.mlflow_tracker import Tracker


class ComparisonRunner:
    """The cells of a comparison: those on disk are read, the others trained, and all of them tracked."""

    def __init__(self, ready: Plan, tracker: Tracker, parent: str, logged: Mapping[str, str], watch: Watch) -> None:
        self.ready, self.tracker, self.parent, self.logged, self.watch = ready, tracker, parent, logged, watch
        self.jobs: list[Job] = []
        self.records: dict[str, dict[str, Any]] = {}
        self.reused = 0

    @property
    def everything(self) -> list[dict[str, Any]]:
        """All records, in the order of the jobs. Arms with the same settings share a run, under the label of each."""
        return [{**self.records[job.key], "arm": job.spec.label} for job in self.jobs]

    def run(self, jobs: Sequence[Job]) -> None:
        """Read or train the runs of these jobs."""
        ready, tracker, parent = self.ready, self.tracker, self.parent
        self.jobs += jobs
        broken = {row.label: row.matched.error for row in ready.rows if row.matched.error}
        for job in jobs:
            found = finished(ready.resolved.output, job.key)
            if found is not None:
                self.records[job.key] = {**found, "arm": job.spec.label}
                self.reused += 1
            elif job.spec.label in broken:
                self.records[job.key] = failed(job, str(broken[job.spec.label]))
            if job.key in self.records and job.key not in self.logged:
                tracker.log_record(self.records[job.key], parent, ready.run_name(job))
        todo = [*{job.key: job for job in jobs if job.key not in self.records}.values()]
        shares = dict.fromkeys((job.key for job in todo), 0.0)
        runs: dict[str, str] = {}
        self.watch(len(self.records), len(self.jobs), 0.0)
        workers = ready.resolved.config.workers or default_workers(ready.resolved.config.trainer)
        for event in self._train(todo, workers):
            key, name = event.job.key, ready.run_name(event.job)
            if event.share is not None:
                shares[key] = event.share
            # A damaged cell is trained again, to the same bits: its run is there already.
            if key not in self.logged:
                if key not in runs:
                    runs[key] = tracker.start_run(opening(event.job), parent, name)
                if event.point is not None:
                    tracker.log_points(runs[key], [event.point])
                if event.record is not None:
                    tracker.end_run(runs[key], event.record, name)
            if event.record is not None:
                self.records[key] = event.record
            self.watch(len(self.records), len(self.jobs), sum(shares.values()) / max(1, len(shares)))

    def _train(self, todo: Sequence[Job], workers: int) -> Iterator[Event]:
        """Train cells. Of those that are trained alike the first one comes before the others, which take up its state."""
        alike: dict[str, list[Job]] = {}
        for job in todo:
            alike.setdefault(self._training(job), []).append(job)
        place = self.ready.resolved.output / ".common"
        places = {key: place / key for key, jobs in alike.items() if len(jobs) > 1}
        waves: tuple[list[Job], list[Job]] = ([], [])
        for job in todo:
            key = self._training(job)
            shared = replace(job, common=(places[key], key)) if key in places else job
            waves[job is not alike[key][0]].append(shared)
        for wave in waves:
            yield from run_jobs(wave, workers)
        # An interrupted comparison finds them when it goes on.
        shutil.rmtree(place, ignore_errors=True)

    def _training(self, job: Job) -> str:
        """The address of a job's training; by the clock, none is like another."""
        alone = job.spec.budget.seconds is not None or job.spec.trainer.devices > 1
        return job.key if alone else training_key(job.spec, self.ready.data.digest)

    def kept(self, error: StorageError) -> StorageError:
        """The same error, and what it did not cost."""
        kept = sum(record["status"] == "ok" for record in self.records.values())
        return StorageError(
            f"{error}; {kept} of {len(self.jobs)} runs are done and kept, and the same command goes on once there is room"
        )
