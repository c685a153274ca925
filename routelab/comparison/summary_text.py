"""Sentence on a whole comparison: which arms differ from the reference, by which tests, and at which cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from routelab.comparison.budget_accounting import NEARLY
from routelab.comparison.verdict import STATES, failure_of
from routelab.config.schema import StatisticsOptions
from routelab.core.number_format import format_change_size, format_level, join_names, pluralise
from routelab.report.arm_labels import marked


def sentence_of(
    arms: Mapping[str, Any],
    reference: str | None,
    data: str,
    options: StatisticsOptions,
    sequential: bool,
    unit: str | None = None,
) -> str:
    """Return what the comparison says on every arm but the reference.

    Args:
        arms: Label -> entry of the summary.
        reference: Label of the reference, None if there is none.
        data: Name of the data.
        options: Levels, margin and sources of uncertainty.
        sequential: Whether seeds were added while verdicts were open.
        unit: Name of the test unit, None if the runs recorded no test units.
    """
    if reference is None:
        return f"On {data}, no arm is the reference (match.reference), so there are no paired differences."
    if not arms[reference]["n"]:
        failed = failure_of(arms[reference])
        return f"On {data}, the reference {reference} {failed} on every seed, so no arm could be compared with it."
    others = {marked(label, arm.get("marks")): arm for label, arm in arms.items() if label != reference}
    if not others:
        return f"On {data}, {reference} was trained alone, so there is nothing to compare it with."
    judged = {state: [name for name, arm in others.items() if arm["state"] == state] for state in STATES}
    margin = format_change_size(options.margin)
    groups = {
        "had a lower test loss than {reference}": judged["better"],
        "had a higher test loss than {reference}": judged["worse"],
        f"had a test loss within {margin} of {{reference}}'s": judged["equivalent"],
        "showed no significant difference from {reference}": judged["open"],
        "got no verdict against {reference}": judged["withheld"],
        "cannot be judged by one seed": _without_interval(others, one_seed=True),
        "cannot be judged by these data": _without_interval(others, one_seed=False),
        "failed on every seed": [n for n, arm in others.items() if not arm["n"] and failure_of(arm) == "failed"],
        "diverged on every seed": [n for n, arm in others.items() if not arm["n"] and failure_of(arm) == "diverged"],
        "shared no finished seed with {reference}": [n for n, arm in others.items() if arm["n"] and not arm["difference"]],
    }
    clauses = [f"{join_names(names)} {what.format(reference=reference)}" for what, names in groups.items() if names]
    test = f" ({name_tests(others, sequential, unit)}, level {format_level(options.alpha)})" if any(judged.values()) else ""
    leaking = [label for label, arm in arms.items() if arm["leaks"]]
    warning = f" The comparison is not fair: outputs of {join_names(leaking)} depend on what they must not." if leaking else ""
    # References outside the loop were matched to nothing.
    known = any(arm.get("flops_ratio") is not None for arm in others.values())
    uncounted = [name for name, arm in others.items() if known and arm["n"] and arm.get("flops_ratio") is None]
    exempt = f" The FLOPs of {join_names(uncounted)} are not counted, so they may differ." if uncounted else ""
    return f"On {data}, {_price(others, reference)}: {'; '.join(clauses)}{test}.{exempt}{warning}"


def _without_interval(arms: Mapping[str, Any], one_seed: bool) -> list[str]:
    """Return the arms that have a difference without an interval, because of a single seed or for another reason."""
    return [
        name
        for name, arm in arms.items()
        if arm["difference"] and arm["state"] is None and ("seeds" in arm["covered"] and arm["difference"]["n"] < 2) == one_seed
    ]


def name_tests(arms: Mapping[str, Any], sequential: bool, unit: str | None) -> str:
    """Return the name of the tests: what they cover, and how they are adjusted for the number of claims.

    Args:
        arms: Label -> entry of the summary, of arms or of pairs.
        sequential: Whether seeds were added while verdicts were open.
        unit: Name of the test unit, None if the runs recorded no test units.
    """
    covered = {source for arm in arms.values() for source in arm["covered"]}
    samples = [
        name for source, name in (("seeds", "seeds"), ("examples", f"test {pluralise(unit or 'example')}")) if source in covered
    ]
    kind = "sequential paired t-tests" if sequential and "seeds" in covered else "paired t-tests"
    return f"{kind} over {' and '.join(samples)}, {'Bonferroni' if sequential else 'Holm-adjusted'}"


def _price(others: Mapping[str, Any], reference: str) -> str:
    """Return the cost at which the arms were compared with the reference; matching may be off, or have a wide tolerance."""
    ratios = [arm["flops_ratio"] for arm in others.values() if arm.get("flops_ratio") is not None]
    if not ratios:
        return "at a cost in FLOPs that is not known"
    if all(abs(ratio - 1) <= NEARLY for ratio in ratios):
        return "at equal forward FLOPs per example"
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"at {low if low == high else f'{low} to {high}'} times the forward FLOPs per example of {reference}"
