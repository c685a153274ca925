"""Arms that are judged against each other, and not only against the reference: with a device and without, one width and another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from routelab.comparison.statistics.hypothesis_tests import differences, judge
from routelab.comparison.summary import entry_of
from routelab.comparison.verdict import verdict_of
from routelab.config.schema import StatisticsOptions
from routelab.core.errors import unknown

Pair = tuple[str, str]
"""Labels: the arm, and the one that it is judged against."""


def pairs_of(options: StatisticsOptions, labels: Sequence[str]) -> list[Pair]:
    """`statistics.pairs`, with every label among those of the arms; UsageError otherwise."""
    for pair in options.pairs:
        for label in pair:
            if label not in labels:
                raise unknown("statistics.pairs", label, labels)
    return [(first, second) for first, second in options.pairs]


def pair_differences(pairs: Sequence[Pair], records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Log test loss of a pair's first arm minus its second's, by seed, for pairs that share one. Keys as `pair_name`."""
    found: dict[str, list[float]] = {}
    for first, second in pairs:
        found |= {pair_name((first, second)): values for values in differences([first], second, records).values()}
    return found


def pair_name(pair: Pair) -> str:
    """A pair as one text."""
    return f"{pair[0]} against {pair[1]}"


def judged_pairs(
    pairs: Sequence[Pair], records: Sequence[Mapping[str, Any]], metric: str, options: StatisticsOptions, sequential: bool
) -> list[dict[str, Any]]:
    """What a summary says of every pair: `arm`, `against`, and what it says of an arm beside its reference.

    The pairs are one family of claims: Holm's adjustment (or Bonferroni's, with seeds=auto) is over them alone.
    """
    entries = {pair_name(pair): entry_of(records, pair[0], metric, pair[1]) for pair in pairs}
    judge(entries, pair_differences(pairs, records), options, sequential)
    judged = []
    for pair in pairs:
        entry = entries[pair_name(pair)]
        judged.append({"arm": pair[0], "against": pair[1], **entry, "verdict": verdict_of(pair[0], entry, pair[1])})
    return judged
