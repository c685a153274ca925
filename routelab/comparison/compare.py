"""`compare`: several arms and seeds at matched FLOPs, from a configuration to a table, records, MLflow runs and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from routelab.comparison.ablation_series import series_of
from routelab.comparison.comparison_runner import ComparisonRunner
from routelab.comparison.csv_export import (
    write_curves,
    write_differences,
    write_domains,
    write_endpoints,
    write_results,
)
from routelab.comparison.execute import Job
from routelab.comparison.frontier import frontier_of
from routelab.comparison.grid import Row, described
from routelab.comparison.inference_latency import inference
from routelab.comparison.interim_looks import withdrawal_text
from routelab.comparison.learning_rate_selection import best_rates, choose_rates
from routelab.comparison.metric_tables import MetricTables, contrasts_against
from routelab.comparison.pairwise import judged_pairs, pair_contrasts, pair_name
from routelab.comparison.prepared_comparison import Plan, Watch, plan
from routelab.comparison.reference_scores import yardsticks_of
from routelab.comparison.results import cells_of
from routelab.comparison.statistics.contrast import Contrast
from routelab.comparison.statistics.hypothesis_tests import evaluate_contrasts, seeds_to_decide
from routelab.comparison.summary import family_of, summarise
from routelab.comparison.units_export import write_units_file
from routelab.config.resolve import Resolved, flatten, resolve
from routelab.core.errors import StorageError
from routelab.records.json_io import read_json, write_json
from routelab.records.provenance import provenance
from routelab.records.run_cache import unit_table_of
from routelab.records.unit_file import UNITS
from routelab.report.comparison_report import write_report
from routelab.tracking.mlflow_tracker import Tracker

FILES = (
    "results.csv", "differences.csv", "domains.csv", "endpoints.csv", "curves.csv", "units.parquet", "summary.json", "report.html",
    "figures",
)  # fmt: skip
"""What a comparison leaves in its folder, and in its MLflow run."""

MAX_ARTIFACT_BYTES = 50_000_000
"""Size of a file that still goes to MLflow. A larger units.parquet stays in the folder: its upload could take longer than the
comparison, and every figure that is computed from it is in summary.json."""


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
    work = ComparisonRunner(ready, tracker, parent, logged, watch)
    try:
        work.run(ready.jobs)
        if resolved.config.seeds == "auto":
            # What was judged before is judged again; leaving it out would be a choice among seeds.
            work.run(ready.jobs_judged_before)
        while resolved.config.seeds == "auto" and (jobs := _next_jobs(ready, work.everything)):
            work.run(jobs)
        ordered = best_rates(work.everything, ready.rate_seeds)
        summary = _summary(ready, work.everything, ordered) | dict(beside or {})
        _write(resolved.output, summary, ordered, ready.rows)
    except BaseException as error:
        tracker.stop()
        tracker.finish(parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        if isinstance(error, StorageError):
            raise work.kept(error) from None
        raise
    paths = [path for name in FILES if (path := resolved.output / name).exists()]
    tracker.log_artifacts(parent, [path for path in paths if path.is_dir() or path.stat().st_size <= MAX_ARTIFACT_BYTES])
    bad = any(record["status"] != "ok" for record in ordered)
    tracker.finish(parent, "FAILED" if bad else "FINISHED")
    problems = [f"{record['arm']} seed {record['seed']}: {text}" for record in ordered for text in record.get("problems", ())]
    return Comparison(resolved.name, resolved.output, summary, ordered, work.reused, [*tracker.problems, *problems])


def _summary(ready: Plan, records: list[dict[str, Any]], ordered: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary of a comparison.

    Args:
        ready: the comparison.
        records: one record for each run, with every learning rate that was tried.
        ordered: one record for each arm and seed, at the arm's best learning rate.
    """
    config, output, earlier = ready.resolved.config, ready.resolved.output, ready.earlier
    main = [record for record in ordered if record["arm"] in ready.labels]
    trained = {record["seed"] for record in main}
    tables = MetricTables(ordered, partial(unit_table_of, output), earlier.leaves_out(trained))
    seeds = len(trained)
    is_sequential = config.seeds == "auto" or earlier.is_sequential(trained)
    summary = summarise(
        ready.resolved.name, main, ready.labels, ready.reference,
        options=config.statistics, sequential=is_sequential, first_look=ready.first_look, tables=tables, earlier_arms=earlier.arms,
        frontier=frontier_of(ordered, ready.rows, ready.reference, tables, config.statistics.uncertainty),
    ) | {"tuned": choose_rates(records, ready.rate_seeds), "rows": described(ready.rows), "cells": cells_of(ordered)}  # fmt: skip
    summary["pairs"] = judged_pairs(
        ready.pairs, main, summary["metric"], config.statistics, is_sequential, tables, ready.first_look
    )
    summary["looks"], summary["judged_seeds"] = earlier.seed_counts(seeds), sorted(earlier.judged | trained)
    summary["withdrawn"] = earlier.withdrawn if is_sequential else None
    summary["withdrawal"] = withdrawal_text(summary["withdrawn"], summary["looks"], "seeds" in config.statistics.uncertainty)
    summary["series"] = series_of([row.matched.choice for row in ready.rows if row.is_main])
    inputs = ready.data.task.inputs
    summary["tokens_per_example"] = inputs.shape[0] if inputs.kind == "text" else None
    summary["yardsticks"] = [*yardsticks_of(ready.data, output), *ready.origins.teachers()]
    for label, seconds in inference(main, output, ready.data).items():
        summary["arms"][label]["inference"] = seconds
    return summary


def _next_jobs(ready: Plan, records: Sequence[Mapping[str, Any]]) -> list[Job]:
    """Return the runs of the next seeds, with seeds=auto: those of the reference and of the arms that more seeds can decide.

    Such an arm has a verdict for which `Result.needs_seeds` is true, against the reference or in a pair.
    """
    options, reference = ready.resolved.config.statistics, ready.reference
    assert reference is not None
    main = [row for row in ready.rows if row.is_main]
    tables = MetricTables(best_rates(records, ready.rate_seeds), partial(unit_table_of, ready.resolved.output))
    against_reference = contrasts_against(reference, ready.labels, tables)
    families: list[tuple[Mapping[str, Contrast], Mapping[str, tuple[str, ...]], int]] = [
        (
            against_reference,
            {label: (label,) for label in against_reference},
            len(family_of(ready.labels, reference, ready.earlier.arms)),
        ),
        (pair_contrasts(ready.pairs, tables), {pair_name(pair): pair for pair in ready.pairs}, len(ready.pairs)),
    ]
    trained = len({record["seed"] for record in records if record["arm"] == reference})
    labels, missing_seeds = {reference}, []
    for contrasts, members, size in families:
        for name, result in evaluate_contrasts(contrasts, options, True, ready.first_look, size).items():
            if result.needs_seeds and contrasts[name].depends_on_seed:
                labels.update(members[name])
                missing_seeds.append((seeds_to_decide(contrasts[name], result) or options.max_seeds) - trained)
    # All arms that are still open have as many seeds as the reference.
    limit = options.max_seeds - trained
    if not missing_seeds or limit < 1:
        return []
    # Never more than twice as many at once: an estimate from few seeds is rough.
    count = min(limit, max(1, min(*missing_seeds, trained)))
    return ready.jobs_of([row for row in main if row.label in labels], range(trained, trained + count))


def _write(output: Path, summary: dict[str, Any], records: list[dict[str, Any]], rows: Sequence[Row]) -> None:
    whole = {row.label for row in rows if row.share == 1.0}
    mine = [record for record in records if record["arm"] in whole]
    write_results(output / "results.csv", mine)
    write_differences(output / "differences.csv", summary)
    write_domains(output / "domains.csv", mine)
    write_endpoints(output / "endpoints.csv", records, rows)
    write_curves(output / "curves.csv", records)
    write_units_file(output / UNITS, records, output)
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
