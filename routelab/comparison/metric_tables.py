"""Tables of a metric by training seed and test unit, from the records and unit tables of a comparison's runs.

Axes: R rows of a unit table, S seeds, U test units, G groups of test units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from routelab.comparison.statistics.contrast import Contrast
from routelab.comparison.statistics.influence import SMALLEST_LOSS, Floats, metric_with_influence
from routelab.data.unit_table import UnitTable

Record = Mapping[str, Any]
UnitReader = Callable[[Record], UnitTable | None]
"""Function from the record of a run to its unit table; None if it has none."""

JACKKNIFE_GROUPS = 20
"""Largest number of groups of test units of which each is left out once."""

_CACHED_UNITS = 100_000
"""Largest unit table that is kept in memory; larger ones are read again for each contrast."""


class MetricTables:
    """Tables of metrics of a comparison's runs by seed and test unit.

    Args:
        records: Records of the runs, one for each arm and seed.
        read: Reader of their unit tables; without it, no run has one.
        is_selected: Whether seeds that were judged before are left out.
    """

    def __init__(self, records: Sequence[Record], read: UnitReader = lambda record: None, is_selected: bool = False) -> None:
        self._is_selected = is_selected
        self._records: dict[str, dict[int, Record]] = {}
        self._diverged: dict[str, set[int]] = {}
        self._tried: dict[str, set[int]] = {}
        for record in records:
            self._tried.setdefault(record["arm"], set()).add(record["seed"])
            if record["status"] == "ok":
                self._records.setdefault(record["arm"], {})[record["seed"]] = record
            elif record.get("diverged"):
                self._diverged.setdefault(record["arm"], set()).add(record["seed"])
        self._read = read
        self._tables: dict[tuple[str, int], UnitTable | None] = {}
        self._rows: dict[tuple[str, int, str, str | None], tuple[float, Floats]] = {}

    @property
    def unit(self) -> str | None:
        """Name of the test unit, None if no run recorded any."""
        names = (
            (record.get("units") or {}).get("unit") for of_arm in self._records.values() for record in of_arm.values()
        )  # fmt: skip
        return next((str(name) for name in names if name), None)

    def seeds(self, arm: str) -> list[int]:
        """Return the seeds on which an arm was trained and tested, ascending.

        Args:
            arm: Label of the arm.
        """
        return sorted(self._records.get(arm, ()))

    def domains(self, arm: str) -> list[str]:
        """Return the domains by which an arm's results are recorded at every seed.

        Args:
            arm: Label of the arm.
        """
        by_domain = [record.get("by_domain") or {} for record in self._records.get(arm, {}).values()]
        return [domain for domain in by_domain[0] if all(domain in domains for domains in by_domain)] if by_domain else []

    def count_diverged(self, *arms: str) -> int:
        """Return the number of seeds that all of the arms have tried and on which at least one of them diverged.

        With seeds=auto, the reference has seeds that a decided arm does not have. They do not count in that arm's result.

        Args:
            *arms: Labels of the arms.
        """
        tried = set.intersection(*(self._tried.get(arm, set()) for arm in arms))
        return len(tried & set[int]().union(*(self._diverged.get(arm, set()) for arm in arms)))

    def values(self, arm: str, seeds: Sequence[int], metric: str, domain: str | None = None) -> Floats | None:
        """Return a metric's recorded value for each seed, (S,); None if a record does not have it.

        Args:
            arm: Label of the arm.
            seeds: Seeds.
            metric: "log_loss", or a metric of the records' `test`.
            domain: Domain of the test data, None for all of them.
        """
        results = [self._records[arm][seed] for seed in seeds]
        tests = [record["test"] if domain is None else (record.get("by_domain") or {}).get(domain, {}) for record in results]
        name = "loss" if metric == "log_loss" else metric
        if any(test.get(name) is None for test in tests):
            return None
        values_S = np.array([float(test[name]) for test in tests])
        return np.log(np.maximum(values_S, SMALLEST_LOSS)) if metric == "log_loss" else values_S

    def table(self, arm: str, seeds: Sequence[int], metric: str, domain: str | None = None) -> Floats | None:
        """Return a metric by seed and unit: the value of each seed plus the influence of each unit.

        Args:
            arm: Label of the arm.
            seeds: Seeds.
            metric: Key of `METRICS`.
            domain: Domain of the test data, None for all of them.

        Returns:
            The table, (S, U). None if a run has no unit table, or if the runs have different units.
        """
        rows, units = [], None
        for seed in seeds:
            table = self._table(arm, seed)
            if table is None or (units is not None and not np.array_equal(units, table.unit)):
                return None
            units = table.unit
            value, influence_U = self._row(arm, seed, metric, domain, table)
            rows.append(value + influence_U)
        return np.array(rows) if rows else None

    def losses_without_groups(self, arm: str, seeds: Sequence[int]) -> Floats | None:
        """Return the mean test loss without each of up to `JACKKNIFE_GROUPS` groups of units.

        The unit at position i, in ascending order, belongs to group i modulo G.

        Args:
            arm: Label of the arm.
            seeds: Seeds.

        Returns:
            The losses, (G, S). None if a run has no unit table or fewer than two units.
        """
        columns = []
        for seed in seeds:
            table = self._table(arm, seed)
            sums = None if table is None else _sums(table, None)
            if sums is None or len(sums["loss"]) < 2:
                return None
            group_U = np.arange(len(sums["loss"])) % min(JACKKNIFE_GROUPS, len(sums["loss"]))
            loss_G, count_G = (np.bincount(group_U, sums[name]) for name in ("loss", "count"))
            columns.append((loss_G.sum() - loss_G) / (count_G.sum() - count_G))
        return np.stack(columns, 1) if columns else None

    def contrast(self, arm: str, against: str, metric: str = "log_loss", domain: str | None = None) -> Contrast | None:
        """Return the difference of a metric between two arms.

        Args:
            arm: Label of the arm.
            against: Label of the arm that it is compared with.
            metric: "log_loss", or a metric of the records' `test`.
            domain: Domain of the test data, None for all of them.

        Returns:
            The difference; None if the arms share no seed or a record does not have the metric.
        """
        seeds = sorted(set(self.seeds(arm)) & set(self.seeds(against)))
        if not seeds:
            return None
        sides = [self.values(label, seeds, metric, domain) for label in (arm, against)]
        if sides[0] is None or sides[1] is None:
            return None
        tables = [self.table(label, seeds, metric, domain) for label in (arm, against)]
        table_SU = None
        if tables[0] is not None and tables[1] is not None and self._same_units(arm, against, seeds[0]):
            table_SU = tables[0] - tables[1]
        is_constant = _is_constant(sides[0], tables[0]) and _is_constant(sides[1], tables[1])
        return Contrast(
            _values_of(sides[0] - sides[1], table_SU),
            table_SU,
            not is_constant,
            tuple(seeds),
            self.count_diverged(arm, against),
            self._is_selected,
        )

    def one_sample(self, arm: str, metric: str, domain: str | None = None) -> Contrast | None:
        """Return a metric of one arm in the form of a contrast, for the interval of its mean.

        Args:
            arm: Label of the arm.
            metric: Metric of the records' `test`.
            domain: Domain of the test data, None for all of them.

        Returns:
            The values; None if the arm has no seed or a record does not have the metric.
        """
        seeds = self.seeds(arm)
        values_S = self.values(arm, seeds, metric, domain) if seeds else None
        if values_S is None:
            return None
        table_SU = self.table(arm, seeds, metric, domain)
        return Contrast(
            _values_of(values_S, table_SU),
            table_SU,
            not _is_constant(values_S, table_SU),
            tuple(seeds),
            self.count_diverged(arm),
        )

    def _same_units(self, arm: str, against: str, seed: int) -> bool:
        tables = self._table(arm, seed), self._table(against, seed)
        return tables[0] is not None and tables[1] is not None and np.array_equal(tables[0].unit, tables[1].unit)

    def _table(self, arm: str, seed: int) -> UnitTable | None:
        if (arm, seed) in self._tables:
            return self._tables[arm, seed]
        table = self._read(self._records[arm][seed])
        if table is None or len(table.unit) <= _CACHED_UNITS:
            self._tables[arm, seed] = table
        return table

    def _row(self, arm: str, seed: int, metric: str, domain: str | None, table: UnitTable) -> tuple[float, Floats]:
        key = arm, seed, metric, domain
        if key in self._rows:
            return self._rows[key]
        row = metric_with_influence(metric, _sums(table, domain))
        if len(table.unit) <= _CACHED_UNITS:
            self._rows[key] = row
        return row


def _values_of(values_S: Floats, table_SU: Floats | None) -> Floats:
    """Return the value of each seed, (S,): from the table, whose sums are in double precision, if there is a finite one."""
    return values_S if table_SU is None or not np.isfinite(table_SU).all() else table_SU.mean(1)


def _is_constant(values_S: Floats, table_SU: Floats | None) -> bool:
    """Return whether results are the same at every seed, of which there are at least two."""
    if len(values_S) < 2 or np.ptp(values_S) != 0.0:
        return False
    return table_SU is None or not np.ptp(table_SU, axis=0).any()


def _sums(table: UnitTable, domain: str | None) -> dict[str, Floats]:
    """Return the sums by unit, (U,), of one domain or of all."""
    rows_R = np.ones(len(table.unit), bool) if domain is None else np.asarray(table.domain) == domain
    unit_R = table.unit[rows_R]
    number_R = np.unique(unit_R, return_inverse=True)[1] if len(unit_R) else unit_R
    return {name: np.bincount(number_R, column_R[rows_R]).astype(np.float64) for name, column_R in table.sums.items()}


def contrasts_against(reference: str, labels: Sequence[str], tables: MetricTables) -> dict[str, Contrast]:
    """Return the difference in log test loss of each arm from the reference, for arms that share a seed with it.

    Args:
        reference: Label of the reference.
        labels: Labels of the arms.
        tables: Tables of the comparison's runs.
    """
    contrasts = {label: tables.contrast(label, reference) for label in labels if label != reference}
    return {label: contrast for label, contrast in contrasts.items() if contrast is not None}
