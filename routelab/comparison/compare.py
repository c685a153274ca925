"""`compare`: several arms and seeds at matched FLOPs, from a configuration to a table, records, MLflow runs and a report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from routelab.comparison.ablation_series import series_of
from routelab.comparison.csv_export import write_curves, write_domains, write_endpoints, write_results
from routelab.comparison.execute import Event, Job, default_workers, failed, opening, run_jobs
from routelab.comparison.frontier import frontier_of
from routelab.comparison.grid import Row, described, rows_of
from routelab.comparison.inference_latency import inference
from routelab.comparison.learning_rate_selection import best_rates, choose_rates
from routelab.comparison.matching import reference_of
from routelab.comparison.pairwise import judged_pairs, pair_differences, pair_name, pairs_of
from routelab.comparison.reference_scores import yardsticks_of
from routelab.comparison.results import cells_of
from routelab.comparison.statistics.hypothesis_tests import differences
from routelab.comparison.statistics.sequential import look, seeds_to_settle
from routelab.comparison.summary import summarise
from routelab.config.arm_grid import ArmChoice
from routelab.config.resolve import Resolved, flatten, resolve, seed_list
from routelab.config.schema import Config, Match
from routelab.core.errors import StorageError, UsageError, unknown
from routelab.data.base import DataSet, load
from routelab.records.json_io import read_json, write_json
from routelab.records.lineage import Origins
from routelab.records.provenance import provenance
from routelab.records.run_cache import cell_folder, cell_key, finished, training_key
from routelab.report.comparison_report import write_report
from routelab.tracking.artifacts import store_at
from routelab.tracking.mlflow_tracker import Tracker

FILES = ("results.csv", "domains.csv", "endpoints.csv", "curves.csv", "summary.json", "report.html", "figures")
"""What a comparison leaves in its folder, and in its MLflow run."""

Watch = Callable[[int, int, float], None]
"""Told how many cells are done, how many there are, and the share of all work that is spent."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns. records: one per arm and seed, at its best learning rate. problems: what tracking could not do."""

    name: str
    output: Path
    summary: dict[str, Any]
    records: list[dict[str, Any]]
    reused: int
    problems: list[str]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Records of the runs that failed."""
        return [record for record in self.records if record["status"] != "ok"]


@dataclass(frozen=True)
class Plan:
    """A checked comparison, ready to run: its rows, the cells that they begin with, in order."""

    resolved: Resolved
    rows: list[Row]
    jobs: list[Job]
    reference: str | None
    data: DataSet
    origins: Origins

    @property
    def labels(self) -> list[str]:
        """The arms as the configuration names them."""
        return [row.label for row in self.rows if row.is_main]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The arms that are judged against each other."""
        return pairs_of(self.resolved.config.verdict, self.labels)

    def run_name(self, job: Job) -> str:
        """What the run of a job is called in the tracking store."""
        several = next(row.matched.choice for row in self.rows if row.label == job.spec.label).rates[1:]
        rate = f"-lr{job.spec.optimizer.lr:g}" if several else ""
        return f"{job.spec.label}{rate}-s{job.spec.seed}"

    def jobs_of(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[Job]:
        """The cells of some rows and seeds."""
        jobs = []
        for seed in seeds:
            for row in rows:
                for rate in row.matched.choice.rates:
                    spec = self.origins.spec(row.matched.choice.with_rate(rate), seed, row.budget)
                    key = cell_key(spec, self.data.digest)
                    jobs.append(Job(key, spec, cell_folder(self.resolved.output, key)))
        return jobs


def plan(resolved: Resolved) -> Plan:
    """Check everything that can be checked before any work: arms, data, matching, the output folder."""
    config = resolved.config
    data = load(**config.data)
    origins, seeds = Origins.of(config, data, store_at(config.tracking.uri)), seed_list(config)
    choices = origins.choices(config.arms, seeds[0])
    rows, reference = rows_of(config, data, choices)
    check_batch(config, data)
    if config.seeds == "auto" and reference is None:
        raise UsageError(f"seeds=auto needs the reference {config.match.reference!r} among the arms")
    pairs_of(config.verdict, [row.label for row in rows if row.is_main])
    check_writable(resolved.output)
    empty = Plan(resolved, rows, [], reference, data, origins)
    if config.seeds == "auto":
        empty.jobs_of(rows, range(config.verdict.most))  # What a later seed builds on is missed now, not then.
    jobs = empty.jobs_of(rows, seeds)
    check_reference(choices, config.match)
    return replace(empty, jobs=jobs)


def compare(
    config: str | Path | Mapping[str, Any] | Sequence[str] | Resolved = (), *, watch: Watch = lambda done, total, share: None
) -> Comparison:
    """Train every arm on every seed, and compare. Cells that are on disk are read, not trained again.

    config: a path, a dict, or a list of `key=value`. Raises UsageError before any work if something is wrong with it.
    """
    resolved = config if isinstance(config, Resolved) else resolve(config)
    return carry_out(plan(resolved), watch)


def carry_out(
    ready: Plan, watch: Watch = lambda done, total, share: None, beside: Mapping[str, Any] | None = None
) -> Comparison:
    """Run a planned comparison. beside: what else its summary is to hold, such as what tuning cost."""
    resolved = ready.resolved
    tracker = Tracker(resolved.config.tracking.uri, resolved.experiment)
    tracker.open()
    parent, logged = _parent(tracker, ready)
    work = _Work(ready, tracker, parent, logged, watch)
    try:
        work.do(ready.jobs)
        while resolved.config.seeds == "auto" and (more := _more(ready, work.everything)):
            work.do(more)
        records = work.everything
        tuned, ordered = choose_rates(records), best_rates(records)
        main = [record for record in ordered if record["arm"] in ready.labels]
        summary = summarise(
            resolved.name, main, ready.labels, ready.reference,
            verdict=resolved.config.verdict, sequential=resolved.config.seeds == "auto",
            frontier=frontier_of(ordered, ready.rows, ready.reference),
        ) | {"tuned": tuned, "rows": described(ready.rows), "cells": cells_of(ordered)}  # fmt: skip
        summary["pairs"] = judged_pairs(
            ready.pairs, main, summary["metric"], resolved.config.verdict, resolved.config.seeds == "auto"
        )
        summary["series"] = series_of([row.matched.choice for row in ready.rows if row.is_main])
        inputs = ready.data.task.inputs
        summary["tokens_per_example"] = inputs.shape[0] if inputs.kind == "text" else None
        summary["yardsticks"] = [*yardsticks_of(ready.data, resolved.output), *ready.origins.teachers()]
        for label, seconds in inference(main, resolved.output, ready.data).items():
            summary["arms"][label]["inference"] = seconds
        summary |= beside or {}
        _write(resolved.output, summary, ordered, ready.rows)
    except BaseException as error:
        tracker.stop()
        tracker.finish(parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        if isinstance(error, StorageError):
            raise work.kept(error) from None
        raise
    tracker.log_artifacts(parent, [path for name in FILES if (path := resolved.output / name).exists()])
    bad = any(record["status"] != "ok" for record in ordered)
    tracker.finish(parent, "FAILED" if bad else "FINISHED")
    problems = [f"{record['arm']} seed {record['seed']}: {text}" for record in ordered for text in record.get("problems", ())]
    return Comparison(resolved.name, resolved.output, summary, ordered, work.reused, [*tracker.problems, *problems])


class _Work:
    """The cells of a comparison: those on disk are read, the others trained, and all of them tracked."""

    def __init__(self, ready: Plan, tracker: Tracker, parent: str, logged: Mapping[str, str], watch: Watch) -> None:
        self.ready, self.tracker, self.parent, self.logged, self.watch = ready, tracker, parent, logged, watch
        self.jobs: list[Job] = []
        self.records: dict[str, dict[str, Any]] = {}
        self.reused = 0

    @property
    def everything(self) -> list[dict[str, Any]]:
        """All records, in the order of the jobs."""
        return [self.records[job.key] for job in self.jobs]

    def do(self, jobs: Sequence[Job]) -> None:
        """Bring in the records of these jobs."""
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
        todo = [job for job in jobs if job.key not in self.records]
        shares = dict.fromkeys((job.key for job in todo), 0.0)
        runs: dict[str, str] = {}
        self.watch(len(self.records), len(self.jobs), 0.0)
        workers = ready.resolved.config.workers or default_workers(ready.resolved.config.trainer)
        for event in self._run(todo, workers):
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

    def _run(self, todo: Sequence[Job], workers: int) -> Iterator[Event]:
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


def _more(ready: Plan, records: Sequence[Mapping[str, Any]]) -> list[Job]:
    """With seeds=auto: the cells of the next seeds, of the arms whose verdict is open, against the reference or in a pair, and of
    the reference."""
    verdict, reference = ready.resolved.config.verdict, ready.reference
    assert reference is not None
    main = [row for row in ready.rows if row.is_main]
    best = best_rates(records)
    found = differences(ready.labels, reference, best)
    families: list[tuple[Mapping[str, list[float]], Mapping[str, tuple[str, ...]]]] = [
        (found, {label: (label,) for label in found}),
        (pair_differences(ready.pairs, best), {pair_name(pair): pair for pair in ready.pairs}),
    ]
    trained = len({record["seed"] for record in records if record["arm"] == reference})
    labels, wanted = {reference}, []
    for values, members in families:
        for name, each in look(values, verdict.margin, verdict.level).items():
            if each.state == "open" and len(values[name]) > 1:
                labels.update(members[name])
                wanted.append((seeds_to_settle(values[name], each.level) or verdict.most) - trained)
    # All arms that are still open have as many seeds as the reference.
    most = verdict.most - trained
    if not wanted or most < 1:
        return []
    # Never more than twice as many at once: an estimate from few seeds is rough.
    count = min(most, max(1, min(*wanted, trained)))
    return ready.jobs_of([row for row in main if row.label in labels], range(trained, trained + count))


def _write(output: Path, summary: dict[str, Any], records: list[dict[str, Any]], rows: Sequence[Row]) -> None:
    whole = {row.label for row in rows if row.share == 1.0}
    mine = [record for record in records if record["arm"] in whole]
    write_results(output / "results.csv", mine)
    write_domains(output / "domains.csv", mine)
    write_endpoints(output / "endpoints.csv", records, rows)
    write_curves(output / "curves.csv", records)
    write_json(output / "summary.json", summary)
    write_report(output / "report.html", summary, records)


def _parent(tracker: Tracker, ready: Plan) -> tuple[str, dict[str, str]]:
    """The comparison's MLflow run: the one of an earlier, interrupted call with the same cells, or a new one."""
    resolved, place = ready.resolved, ready.resolved.output / "comparison.json"
    cells = sorted(job.key for job in ready.jobs)
    before = read_json(place) or {}
    same = before.get("cells") == cells and before.get("uri") == resolved.config.tracking.uri
    here = provenance()
    params = flatten(asdict(resolved.config))
    note = f"Arms {', '.join(ready.labels)} on {resolved.config.data.get('name')}: `{here['command']}`"
    tags = {"routelab.kind": "comparison", "git_revision": str(here["git_revision"])}
    parent = tracker.start_parent(resolved.name, params, tags, note, run_id=before.get("parent") if same else None)
    write_json(place, {"cells": cells, "uri": resolved.config.tracking.uri, "parent": parent})
    return parent, tracker.children(parent) if same else {}


def check_reference(choices: Sequence[ArmChoice], match: Match) -> None:
    """UsageError if `match.reference` is none of the arms, but for the default: arms without a dense one keep their sizes."""
    if match.reference != Match().reference and reference_of(choices, match) is None:
        raise unknown("match.reference", match.reference, {name for each in choices for name in (each.label, each.spec.name)})


def check_batch(config: Config, data: DataSet) -> None:
    """UsageError if a batch is larger than the training split."""
    size = config.trainer.batch_size
    if size > len(data.train):
        raise UsageError(f"trainer.batch_size={size} must be at most the {len(data.train)} training examples")


def check_writable(folder: Path) -> None:
    """Make the folder; UsageError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"output={str(folder)!r} cannot be written to: {error.strerror or error}") from None
