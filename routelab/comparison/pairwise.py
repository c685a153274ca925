"""Arms that are judged against each other, and not only against the reference: with a device and without, one width and another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from routelab.comparison.metric_tables import MetricTables
from routelab.comparison.statistics.contrast import Contrast
from routelab.comparison.statistics.hypothesis_tests import describe_contrast, judge
from routelab.comparison.summary import entry_of
from routelab.comparison.verdict import notes_of, verdict_of
from routelab.config.schema import StatisticsOptions
from routelab.core.errors import unknown

Pair = tuple[str, str]
"""Labels: the arm, and the one that it is judged against."""


def pairs_of(options: StatisticsOptions, labels: Sequence[str]) -> list[Pair]:
    """Return `statistics.pairs` as tuples.

    Args:
        options: Options that hold the pairs.
        labels: Labels of the arms.

    Raises:
        UsageError: if a label of a pair is not among them.
    """
    for pair in options.pairs:
        for label in pair:
            if label not in labels:
                raise unknown("statistics.pairs", label, labels)
    return [(first, second) for first, second in options.pairs]


def pair_contrasts(pairs: Sequence[Pair], tables: MetricTables) -> dict[str, Contrast]:
    """Return the difference in log test loss of each pair's first arm from its second, for pairs that share a seed.

    Args:
        pairs: Labels of the arms.
        tables: Tables of the comparison's runs.

    Returns:
        `pair_name` of a pair -> its difference.
    """
    contrasts = {pair_name((first, second)): tables.contrast(first, second) for first, second in pairs}
    return {name: contrast for name, contrast in contrasts.items() if contrast is not None}


def pair_name(pair: Pair) -> str:
    """Return a pair as one text."""
    return f"{pair[0]} against {pair[1]}"


def judged_pairs(
    pairs: Sequence[Pair],
    records: Sequence[Mapping[str, Any]],
    metric: str,
    options: StatisticsOptions,
    sequential: bool,
    tables: MetricTables | None = None,
    first_look: int | None = None,
) -> list[dict[str, Any]]:
    """Return the entry of every pair: `arm`, `against`, and what a summary says of an arm and its reference.

    The pairs are one family of claims: Holm's adjustment (or Bonferroni's, with seeds=auto) covers them alone.

    Args:
        pairs: Labels of the arms.
        records: One record for each arm and seed.
        metric: Metric of the data.
        options: Levels, margin and sources of uncertainty.
        sequential: Whether seeds were added while verdicts were open.
        tables: Tables by test unit; None = without test units.
        first_look: Smallest number of seeds at which an analysis was made; None = `options.min_seeds`.
    """
    tables = tables or MetricTables(records)
    entries = {pair_name(pair): entry_of(records, pair[0], metric, pair[1], tables, options) for pair in pairs}
    judge(entries, pair_contrasts(pairs, tables), options, sequential, first_look)
    judged = []
    for pair in pairs:
        entry = entries[pair_name(pair)]
        difference = describe_contrast(tables.contrast(*pair, metric), options, sequential, first_look)
        texts = {"notes": notes_of(entry, tables.unit), "verdict": verdict_of(pair[0], entry, pair[1], tables.unit)}
        judged.append({"arm": pair[0], "against": pair[1], **entry, "metric_difference": difference, **texts})
    return judged
