"""A checked comparison, ready to run: its grid, its runs, its data and its lineage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from routelab.comparison.execute import Job
from routelab.comparison.grid import Row, check_batch, rows_of
from routelab.comparison.interim_looks import EarlierLooks, earlier_looks, seeds_of
from routelab.comparison.matching import check_reference
from routelab.comparison.pairwise import pairs_of
from routelab.config.resolve import Resolved, seed_list
from routelab.core.errors import UsageError
from routelab.data.base import DataSet, load
from routelab.records.json_io import check_writable, read_json
from routelab.records.lineage import Origins
from routelab.records.run_cache import cell_folder, cell_key
from routelab.tracking.artifacts import store_at

Watch = Callable[[int, int, float], None]
"""Told how many cells are done, how many there are, and the share of all work that is spent."""


@dataclass(frozen=True)
class Plan:
    """A checked comparison, ready to run: its rows, the cells that they begin with, in order.

    Attributes:
        earlier: Earlier analyses of the same comparison.
    """

    resolved: Resolved
    rows: list[Row]
    jobs: list[Job]
    reference: str | None
    data: DataSet
    origins: Origins
    earlier: EarlierLooks = field(default_factory=EarlierLooks)

    @property
    def labels(self) -> list[str]:
        """The arms as the configuration names them."""
        return [row.label for row in self.rows if row.is_main]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The arms that are judged against each other."""
        return pairs_of(self.resolved.config.statistics, self.labels)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the planned runs, ascending."""
        return sorted({job.spec.seed for job in self.jobs})

    @property
    def first_look(self) -> int:
        """Smallest number of seeds at which the comparison is or was analysed."""
        return min((self.resolved.config.statistics.min_seeds, *self.earlier.seeds))

    @property
    def rate_seeds(self) -> list[int]:
        """Seeds on which learning rates are chosen: those of the first analysis, as another rate later would be another arm."""
        return sorted({*self.seeds, *self.earlier.judged})[: min((len(self.seeds), *self.earlier.seeds))]

    @property
    def jobs_judged_before(self) -> list[Job]:
        """Runs of the latest analysis that are not planned."""
        jobs = self.main_jobs(sorted(self.earlier.judged - set(self.seeds)))
        return [job for job in jobs if job.key in self.earlier.cells]

    def main_jobs(self, seeds: Sequence[int]) -> list[Job]:
        """Return the runs of the arms; none if a run that they begin from does not exist.

        Args:
            seeds: Seeds of the runs.
        """
        try:
            return self.jobs_of([row for row in self.rows if row.is_main], seeds)
        except UsageError:
            return []

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
    pairs_of(config.statistics, [row.label for row in rows if row.is_main])
    check_writable(resolved.output)
    empty = Plan(resolved, rows, [], reference, data, origins)
    if config.seeds == "auto":
        empty.jobs_of(rows, range(config.statistics.max_seeds))  # What a later seed builds on is missed now, not then.
    jobs = empty.jobs_of(rows, seeds)
    check_reference(choices, config.match)
    return _with_earlier_looks(replace(empty, jobs=jobs))


def _with_earlier_looks(prepared: Plan) -> Plan:
    """Return a plan with the earlier analyses, which the summary in its folder holds."""
    summary = read_json(prepared.resolved.output / "summary.json")
    # A comparison of other seeds has no run in common with the planned ones.
    jobs = [*prepared.jobs, *prepared.main_jobs(sorted(set(seeds_of(summary)) - set(prepared.seeds)))]
    return replace(prepared, earlier=earlier_looks(summary, {job.key for job in jobs}, prepared.labels, prepared.reference))
